"""Records for fine-tuning: from a file of conversations, prompts or tokens to tokens and weights."""
