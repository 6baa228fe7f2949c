"""Records of fine-tuning data: from what a file holds to tokens and their weights in the loss."""
