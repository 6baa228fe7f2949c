"""Train neural networks across many devices."""
