"""Evaluation of a checkpoint, in any layout: the loss of data, and tasks of lm-eval."""
