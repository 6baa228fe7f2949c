"""Evaluation of a checkpoint: the loss of token data sets, in any layout."""
