"""Data: token files, mixtures, the order of samples as a function of their position, and the loader."""
