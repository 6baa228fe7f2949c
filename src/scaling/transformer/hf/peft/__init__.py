"""Adapters as PEFT stores them: read as adapter checkpoints, and written from them."""
