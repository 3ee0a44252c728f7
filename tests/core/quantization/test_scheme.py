"""Which layers are quantized, when their ranges move, and the file of the scales."""

import io
import json

import pytest
import torch
from torch import nn

from obert_modifiers.core.quantization.fake_quant import ACTIVATION
from obert_modifiers.core.quantization.scales import (
    FILE_NAME,
    load_quantization_,
    save_quantization,
)
from obert_modifiers.core.quantization.scheme import (
    Scheme,
    find_layers,
    freeze_,
    quantize_,
    quantizers_of,
    ranges_held,
)
from tests.core.models import TOKENS, Attending, trained

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


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_file_beside_the_model(per_channel: bool, tmp_path) -> None:
    model = trained(Scheme(per_channel=per_channel, attention_matmuls=True))
    freeze_(model)
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    weights.seek(0)
    path = save_quantization(model, tmp_path)
    assert path == tmp_path / FILE_NAME
    again = Attending()
    again.load_state_dict(torch.load(weights))  # a plain model takes it
    plain = again.eval()(TOKENS)
    assert load_quantization_(again, tmp_path)
    assert torch.equal(again.eval()(TOKENS), model(TOKENS))
    assert not torch.equal(plain, model(TOKENS))
    assert not any(one.observing for one in quantizers_of(again).values())
    assert quantizers_of(again).keys() == quantizers_of(model).keys()
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="embedding:weight of .* is not in Sequential"):
        load_quantization_(other, tmp_path)
    path.write_text(json.dumps({"version": 7}))
    with pytest.raises(
        ValueError, match="version=7 of .* is unknown; expected 1; load"
    ):
        load_quantization_(Attending(), tmp_path)


def test_a_plain_model_has_no_file(tmp_path) -> None:
    model = Attending()
    assert save_quantization(model, tmp_path) is None
    assert not load_quantization_(model, tmp_path)
    assert not list(tmp_path.iterdir())
