"""Rows of words: read from columns, cut into windows."""
