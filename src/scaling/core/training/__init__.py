"""A training below the trainer: its description, and the object made of it that takes steps."""
