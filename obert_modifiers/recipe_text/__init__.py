"""A recipe as text: its parts, variables and values; it knows nothing of modifiers."""
