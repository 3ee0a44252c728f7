"""Attention as plain products of matrices, in models of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Let attention be computed operation by operation in the body.

    Without fused kernels, which a tracer does not see into, and whose backward pass in
    bfloat16 on a CPU takes longer than the products.
    """
    before = []
    for config in (getattr(module, "config", None) for module in model.modules()):
        kind = getattr(config, "_attn_implementation", None)
        if kind not in (None, "eager"):
            before.append((config, kind))
            config._attn_implementation = "eager"
    try:
        yield
    finally:
        for config, kind in reversed(before):
            config._attn_implementation = kind
