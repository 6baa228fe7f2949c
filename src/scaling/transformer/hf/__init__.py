"""Models of Hugging Face: the supported families, and the translation between their files and ours."""
