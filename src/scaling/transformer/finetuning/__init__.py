"""The results of a fine-tuning: read, put beside a loaded base, or merged into it."""
