"""Quantized layers: what they compute, and that the model keeps its face."""

import copy

import pytest
import torch
import torch.nn.functional as nnf
from torch import nn

from obert_modifiers.core.quantization.scheme import Scheme, quantize_, quantizers_of
from tests.core.models import (
    TOKENS,
    Attending,
    ToyAttention,
    remove_quantization_,
    trained,
)


def test_the_model_keeps_its_face() -> None:
    model = Attending()
    expected = model(TOKENS)
    parameters, keys = list(model.parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantize_(model, Scheme(attention_matmuls=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    assert isinstance(model.head, nn.Linear) and isinstance(model.block, ToyAttention)
    before = [p.detach().clone() for p in parameters]
    model(TOKENS).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    assert not torch.equal(model(TOKENS), expected)
    remove_quantization_(model)
    assert torch.equal(model(TOKENS), expected)
    assert type(model.block) is ToyAttention and not quantizers_of(model)
    assert not hasattr(model.head, "quantizers")


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_layer_is_the_plain_one_on_rounded_values(per_channel: bool) -> None:
    model = trained(Scheme(per_channel=per_channel))
    found = quantizers_of(model)
    hidden = torch.randn(5, 8)
    weight = found["head:weight"](model.head.weight, False)
    rounded = found["head:input"](hidden, False)
    assert found["head:weight"].scale.numel() == (2 if per_channel else 1)
    assert torch.equal(model.head(hidden), rounded @ weight.T)
    matrix = found["embedding:weight"](model.embedding.weight, False)
    assert found["embedding:weight"].scale.numel() == 1
    assert torch.equal(model.embedding(TOKENS), matrix[TOKENS])
    assert not torch.equal(matrix, model.embedding.weight)


@pytest.mark.parametrize("fused", ["sdpa", "bool", "written out"])
def test_products_of_attention_take_rounded_values(fused: str) -> None:
    model = trained(Scheme(attention_matmuls=True), fused)
    found = quantizers_of(model)
    hidden = torch.randn(2, 6, 8)
    q, k, v = (
        found[f"block:{name}"](getattr(model.block, name)(hidden), False)
        for name in ("query", "key", "value")
    )
    scores = q @ k.transpose(1, 2) / 8**0.5
    scores[:, :, -1] = -1e9
    kept = found["block:probabilities"](scores.softmax(-1), False)
    # Equal but for the order of the products' sums in float32.
    torch.testing.assert_close(model.block(hidden), kept @ v, rtol=1e-5, atol=1e-6)
    assert found["block:probabilities"].zero_point.tolist() == [0]
    plain = trained(Scheme(), fused)
    assert not torch.allclose(model.block(hidden), plain.block(hidden), atol=1e-6)


def test_attention_that_cannot_be_quantized_is_refused(monkeypatch) -> None:
    with pytest.raises(RuntimeError, match="finds 0 products in ToyAttention; expec"):
        trained(Scheme(attention_matmuls=True), "other")
    model = trained(Scheme(attention_matmuls=True))

    def causal(self, x):
        query, key, value = self.query(x), self.key(x), self.value(x)
        return nnf.scaled_dot_product_attention(query, key, value, is_causal=True)

    monkeypatch.setattr(ToyAttention, "forward", causal)
    with pytest.raises(RuntimeError, match="meets causal or grouped attention"):
        model(TOKENS)


def test_copies_are_apart_and_devices_and_dtypes_follow() -> None:
    model = trained(Scheme())
    twin = copy.deepcopy(model)
    assert torch.equal(twin(TOKENS), model(TOKENS))
    twin.train()
    twin(TOKENS.flip(0))
    assert quantizers_of(twin)["head:input"] is not quantizers_of(model)["head:input"]
    meta = twin.to("meta")
    assert quantizers_of(meta)["head:input"].scale.device.type == "meta"
    half = model.half()
    assert quantizers_of(half)["head:input"].scale.dtype == torch.float32
