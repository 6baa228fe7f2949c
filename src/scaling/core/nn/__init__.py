"""Part of the engine: nn."""
