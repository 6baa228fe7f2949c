"""Proof that a configuration trains the same way in two layouts: its own parts, shrunk to the size of a laptop."""
