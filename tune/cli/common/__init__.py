"""What all commands share: their options, their log output, and the one line that reports a usage error."""
