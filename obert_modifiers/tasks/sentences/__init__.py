"""Texts and pairs of them, embedded: the data, the model, the figures."""
