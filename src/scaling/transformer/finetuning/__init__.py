"""What a fine-tuning left: read, put beside a base that is loaded, or merged into it."""
