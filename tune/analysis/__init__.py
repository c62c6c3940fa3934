"""What a sweep's folder holds, read for people: data frames, figures, and the report as one HTML file."""
