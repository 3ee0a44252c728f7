"""A CPU engine for pruned encoders: the zeros are not multiplied.

It needs NumPy, llvmlite (which comes with numba), safetensors and tokenizers.
"""

from obert_modifiers.runtime.encoder import Outputs, SparseEncoder

__all__ = ["Outputs", "SparseEncoder"]
