"""Attention as plain products of matrices, in models of transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Let attention be computed operation by operation in the body.

    Without fused kernels, which a tracer does not see into, and whose backward pass in
    bfloat16 on a CPU takes longer than the products.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    kinds = [
        (config, kind)
        for config in {id(config): config for config in found}.values()
        if (kind := getattr(config, "_attn_implementation", None)) is not None
    ]
    try:
        for config, _ in kinds:
            config._attn_implementation = "eager"
        yield
    finally:
        # In this order: what is set in a model's goes on to those of its parts.
        for config, kind in kinds:
            config._attn_implementation = kind
