"""L5: what to train on: data, collation, losses and metrics by task."""
