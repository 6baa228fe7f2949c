"""What a run tells: log lines, metrics and where they go, its state and its origin."""
