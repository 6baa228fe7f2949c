"""Part of the engine: topology."""
