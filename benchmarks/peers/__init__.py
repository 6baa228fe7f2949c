"""Other libraries: a file for each, with functions that build a step of the same model."""
