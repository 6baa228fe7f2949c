"""The training loop: resume, train, log, evaluate, save, leave when asked."""
