"""Pruning algorithms on plain tensors.

Imports torch, ``torch.distributed`` and :mod:`obert_modifiers.kernels` only.
"""
