"""Part of the engine: verify."""
