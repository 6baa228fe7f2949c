"""Part of the engine: logging."""
