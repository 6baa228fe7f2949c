"""Continue prompts: the options, the schedule of rows on the ranks, and the choice of tokens."""
