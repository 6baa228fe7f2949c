"""Layers whose weights may be cut over the model axis, described parameter by parameter."""
