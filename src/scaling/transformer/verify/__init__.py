"""Proof that a configuration trains alike in two layouts: its own parts, brought to the size of a laptop."""
