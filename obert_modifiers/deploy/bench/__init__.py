"""How fast a model is on an engine, and how much faster than another."""
