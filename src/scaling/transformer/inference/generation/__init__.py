"""Continue prompts: what is asked for, what runs next on which rank, and which token is chosen."""
