"""The layers of the language model."""
