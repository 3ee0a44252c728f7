"""L5: how fast a model is on an engine, and how much faster than another."""
