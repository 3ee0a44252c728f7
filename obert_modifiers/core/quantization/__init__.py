"""Fake quantization to 8 bits."""
