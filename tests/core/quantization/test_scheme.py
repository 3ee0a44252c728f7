"""Which layers are quantized, and when their ranges move."""

import pytest
import torch
from torch import nn

from obert_modifiers.core.quantization.fake_quant import ACTIVATION
from obert_modifiers.core.quantization.scheme import (
    Scheme,
    find_layers,
    freeze_,
    quantize_,
    quantizers_of,
    ranges_held,
)
from tests.core.models import Attending, trained

LAYERS = ["embedding", "block.query", "block.key", "block.value", "head"]


def test_what_is_quantized() -> None:
    model = Attending()
    assert find_layers(model, Scheme()) == LAYERS
    assert find_layers(model, Scheme(embeddings=False)) == LAYERS[1:]
    assert find_layers(model, Scheme(ignore=("block",))) == ["embedding", "head"]
    found = find_layers(model, Scheme(attention_matmuls=True, ignore=("re:.*key",)))
    assert found == ["embedding", "block", "block.query", "block.value", "head"]
    found = find_layers(model, Scheme(attention_matmuls=True, ignore=("block",)))
    assert found == ["embedding", "head"]
    names = quantizers_of(trained(Scheme(attention_matmuls=True)))
    assert len(names) == 1 + 4 + 4 * 2
    assert {n for n in names if n.startswith("block:")} == {
        f"block:{role}" for role in ("query", "key", "probabilities", "value")
    }


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (None, {"ignore": ("hed",)}, "ignore=hed matches no layer.*nearest: head, em"),
        (None, {"ignore": ("re:",)}, r"ignore=\['re:'\] leaves no layer of Attending"),
        ("plain", {"attention_matmuls": True}, "quantize_attention_matmuls=true finds"),
        ("sparse", {}, "layer=embedding is a Embedding with max_norm or sparse"),
        ("quantized", {}, "layer=embedding is quantized already; expected a plain"),
    ],
)
def test_what_cannot_be_quantized_is_refused(change, keys, message) -> None:
    model = Attending()
    if change == "plain":
        model = nn.Sequential(nn.Linear(2, 2))
    elif change == "sparse":
        model.embedding = nn.Embedding(11, 8, sparse=True)
        assert find_layers(model, Scheme(ignore=("embedding",))) == LAYERS[1:]
    elif change == "quantized":
        model = trained(Scheme())
    with pytest.raises(ValueError, match=message):
        find_layers(model, Scheme(**keys))


def test_ranges_freeze_and_are_held() -> None:
    model = trained(Scheme())
    found = quantizers_of(model)
    with ranges_held(model):
        assert not any(one.observing for one in found.values())
    assert all(one.observing for one in found.values())
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    assert freeze_(model, weights=False) == []
    assert all(one.observing == (one.kind != ACTIVATION) for one in found.values())
    assert freeze_(model) == []
    largest = model.head.weight.abs().max().item() / 63
    assert found["head:weight"].scale.item() == pytest.approx(largest, rel=1e-6)
    fresh = Attending()
    quantize_(fresh, Scheme())
    assert freeze_(fresh) == [f"{name}:input" for name in LAYERS[1:]]
