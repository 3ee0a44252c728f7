"""Processes and memory."""
