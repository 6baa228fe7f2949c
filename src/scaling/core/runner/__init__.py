"""Starting the processes of a run, and turning their ends into one message and one exit status."""
