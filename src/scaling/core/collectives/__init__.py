"""Part of the engine: collectives."""
