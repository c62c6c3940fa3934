"""What users look at: progress, status, report, evaluation tables, dashboard and doctor."""
