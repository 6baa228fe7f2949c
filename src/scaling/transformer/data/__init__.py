"""Text as training data: files to tokens, tokens to packed sequences, sequences to micro-batches."""
