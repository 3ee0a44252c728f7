"""Data sets: from files to rows, columns and labels."""
