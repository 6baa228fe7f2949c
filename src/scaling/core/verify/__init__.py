"""Proof that two layouts are the same training run, or the name of the parameter where they part."""
