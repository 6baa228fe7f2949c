"""Part of the engine: optimizer."""
