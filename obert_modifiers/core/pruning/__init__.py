"""From gradients to pruned weights."""
