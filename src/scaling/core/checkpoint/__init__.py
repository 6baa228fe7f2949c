"""Checkpoints: boxes of named tensors in files with digests, saved by one rename, found and loaded in any layout."""
