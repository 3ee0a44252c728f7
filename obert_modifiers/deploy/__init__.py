"""From a run to a measured file."""
