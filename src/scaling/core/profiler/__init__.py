"""Part of the engine: profiler."""
