"""The `scaling` command."""
