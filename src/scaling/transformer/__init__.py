"""The language-model suite."""
