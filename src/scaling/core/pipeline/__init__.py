"""Part of the engine: pipeline."""
