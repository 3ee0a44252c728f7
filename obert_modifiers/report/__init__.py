"""A page and a picture of one run, or of several side by side."""
