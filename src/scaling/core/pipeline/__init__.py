"""The pipeline: layers cut into stages, schedules as lists of actions, and the engine that executes them."""
