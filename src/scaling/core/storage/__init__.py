"""Files that a kill at any moment leaves old or new, locks that do not outlive their holder, values of JSON."""
