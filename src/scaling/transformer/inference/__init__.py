"""Inference: load a checkpoint into one process, score and generate text."""
