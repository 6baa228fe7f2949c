"""Part of the engine: trainer."""
