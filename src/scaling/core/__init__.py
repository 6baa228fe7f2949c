"""The model-agnostic engine."""
