"""Part of the engine: checkpoint."""
