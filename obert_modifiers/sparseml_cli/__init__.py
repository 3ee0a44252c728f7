"""SparseML's own command line, on today's libraries."""
