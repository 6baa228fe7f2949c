"""What the site consists of beside the pages that are written by hand. `make docs` runs it; no Sphinx is needed."""
