"""Part of the engine: data."""
