"""Models of Hugging Face: which families there are, and how their files and ours say the same."""
