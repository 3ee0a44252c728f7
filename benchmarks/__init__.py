"""Benchmarks; each file runs on its own and writes JSON where asked."""
