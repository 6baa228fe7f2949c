"""Part of the engine: runner."""
