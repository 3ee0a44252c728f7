"""Layers on 8-bit grids: the same modules with another class.

Their parameters stay the same objects under the same names, no hook is left, and
``state_dict`` has the same keys.
"""

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from obert_modifiers.core.quantization.fake_quant import (
    ACTIVATION,
    FULL_RANGE,
    WEIGHT,
    Quantizer,
)

_PROJECTIONS = ({"query", "key", "value"}, {"q_lin", "k_lin", "v_lin"})
_OPERANDS = ("query", "key", "probabilities", "value")
_PRODUCTS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.__matmul__)


class Quantized:
    """What the quantized classes share; the quantizers are no submodules."""

    plain_class: type[nn.Module]
    quantizers: dict[str, Quantizer]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[misc]
        where = next(self.parameters()).device  # type: ignore[attr-defined]
        for quantizer in self.quantizers.values():
            quantizer.to(where)
        return self


class QuantizedLinear(Quantized, nn.Linear):
    """A linear layer with its input and weight on 8-bit grids."""

    plain_class = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer: ``(..., in)`` to ``(..., out)``."""
        weight = self.quantizers["weight"](self.weight, self.training)
        input = self.quantizers["input"](input, self.training)
        return nnf.linear(input, weight, self.bias)


class QuantizedEmbedding(Quantized, nn.Embedding):
    """An embedding with its matrix on an 8-bit grid."""

    plain_class = nn.Embedding

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows: indices of any shape to ``(..., width)``."""
        weight = self.quantizers["weight"](self.weight, self.training)
        return nnf.embedding(
            input, weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq
        )


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedLinear,
    nn.Embedding: QuantizedEmbedding,
}


class _QuantizedAttention(Quantized):
    """An attention module whose two products take 8-bit inputs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module, as its own class does; raise if it is no attention."""
        with _Products(self.quantizers, self.training) as products:  # type: ignore[attr-defined]
            found = super().forward(*args, **kwargs)  # type: ignore[misc]
        if products.count != 2:
            raise RuntimeError(
                f"quantize_attention_matmuls=true finds {products.count} products in "
                f"{self.plain_class.__name__}; expected 2, of query with key and of "
                "probabilities with value; load the model with "
                "attn_implementation='sdpa' or 'eager', or write false"
            )
        return found


class _Products(TorchFunctionMode):
    """Quantize the inputs of the products that are computed meanwhile."""

    def __init__(self, quantizers: dict[str, Quantizer], training: bool) -> None:
        super().__init__()
        self.count = 0
        self._quantizers, self._training = quantizers, training

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is nnf.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in _PRODUCTS:
            return self._product(*args, **kwargs)
        return func(*args, **kwargs)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        one, two = _OPERANDS[:2] if self.count % 2 == 0 else _OPERANDS[2:]
        self.count += 1
        left = self._quantizers[one](left, self._training)
        return torch.matmul(left, self._quantizers[two](right, self._training))

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        # torch's fused attention, written out: its inside cannot be reached.
        if is_causal or enable_gqa:
            raise RuntimeError(
                "quantize_attention_matmuls=true meets causal or grouped attention; "
                "expected an encoder's; write false"
            )
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = self._product(query, key.transpose(-2, -1)) * scale
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            lowest = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(attn_mask.logical_not(), lowest)
        elif attn_mask is not None:
            scores = scores + attn_mask
        kept = scores.softmax(dim=-1)
        if dropout_p > 0.0:
            kept = nnf.dropout(kept, dropout_p)
        return self._product(kept, value)


def is_attention(module: nn.Module) -> bool:
    """Tell attention modules by their linear layers for query, key and value."""
    linear = {n for n, m in module.named_children() if isinstance(m, nn.Linear)}
    return any(names <= linear for names in _PROJECTIONS)


def attach_(module: nn.Module, per_channel: bool, limit: int = FULL_RANGE) -> None:
    """Make a plain linear layer, embedding or attention module a quantized one.

    A weight has its range at once, up to the integer ``limit``; ``per_channel`` gives a
    scale to each output of a linear layer.
    """
    plain = type(module)
    where = next(module.parameters()).device
    inputs = {nn.Linear: ("input",), nn.Embedding: ()}.get(plain, _OPERANDS)
    quantizers = {role: Quantizer(ACTIVATION, where, limit=limit) for role in inputs}
    if plain in LAYERS:
        rows = per_channel and plain is nn.Linear
        quantizers = {"weight": Quantizer(WEIGHT, where, rows, limit), **quantizers}
        quantizers["weight"].observe_(module.get_parameter("weight"))
        module.__class__ = LAYERS[plain]
    else:
        bases = (_QuantizedAttention, plain)
        contents = {"plain_class": plain}
        module.__class__ = type(f"Quantized{plain.__name__}", bases, contents)
    module.quantizers = quantizers  # type: ignore[assignment]
