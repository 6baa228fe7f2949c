"""A timeline of what a process does."""
