"""Quantized layers: which they are, and that the model keeps its face."""

# ruff: noqa: E501  whole messages

import copy
import io
import json

import pytest
import torch
import torch.nn.functional as nnf
from torch import nn

from obert_modifiers.core.quantization.fake_quant import (
    ACTIVATION,
    Quantizer,
    average_ranges_,
)
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
    remove_quantization_,
)

LAYERS = [
    "embedding",
    "block.query",
    "block.key",
    "block.value",
    "head",
]


class Attention(nn.Module):
    def __init__(self, fused: str) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.fused == "sdpa":
            mask = torch.zeros(x.shape[1], x.shape[1])
            mask[:, -1] = -1e9
            return nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.fused == "bool":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
            mask[:, -1] = False
            return nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.fused == "other":
            return torch.einsum("bik,bjk,bjd->bid", q, k, v)
        scores = q @ k.transpose(1, 2) / 8**0.5
        scores[:, :, -1] = -1e9
        return torch.matmul(scores.softmax(-1), v)


class Model(nn.Module):
    def __init__(self, fused: str = "sdpa") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.block = Attention(fused)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.embedding(tokens))).mean(1))


TOKENS = torch.arange(12).reshape(2, 6) % 6


def trained(scheme: Scheme, fused: str = "sdpa") -> Model:
    model = Model(fused)
    quantize_(model, scheme)
    model.train()
    model(TOKENS)
    model.eval()
    return model


def test_what_is_quantized() -> None:
    model = Model()
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


def test_the_model_keeps_its_face() -> None:
    model = Model()
    expected = model(TOKENS)
    parameters, keys = list(model.parameters()), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantize_(model, Scheme(attention_matmuls=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys
    assert isinstance(model.head, nn.Linear) and isinstance(model.block, Attention)
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
    assert type(model.block) is Attention and not quantizers_of(model)
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


def test_what_cannot_be_quantized_is_refused() -> None:
    def message(model, **keys) -> str:
        with pytest.raises(ValueError) as error:
            find_layers(model, Scheme(**keys))
        return str(error.value)

    assert message(Model(), ignore=("hed",)) == (
        "ignore=hed matches no layer; expected the name of a layer or of a module above it, or a re: pattern; nearest: head, embedding, block.key"
    )
    assert message(Model(), ignore=("re:",)) == (
        "ignore=['re:'] leaves no layer of Model to quantize; expected a linear layer at least; shorten it"
    )
    assert message(nn.Sequential(nn.Linear(2, 2)), attention_matmuls=True) == (
        "quantize_attention_matmuls=true finds no module with query, key and value layers in Sequential; expected an encoder like BERT's; write false"
    )
    odd = Model()
    odd.embedding = nn.Embedding(11, 8, sparse=True)
    assert message(odd) == (
        "layer=embedding is a Embedding with max_norm or sparse gradients; expected nn.Linear or a plain nn.Embedding; name it under ignore"
    )
    assert find_layers(odd, Scheme(ignore=("embedding",))) == LAYERS[1:]
    assert message(trained(Scheme())) == (
        "layer=embedding is quantized already; expected a plain model; use one QATModifier"
    )
    with pytest.raises(RuntimeError) as error:
        trained(Scheme(attention_matmuls=True), "other")
    assert str(error.value) == (
        "quantize_attention_matmuls=true finds 0 products in Attention; expected 2, of query with key and of probabilities with value; load the model with attn_implementation='sdpa' or 'eager', or write false"
    )
    causal = trained(Scheme(attention_matmuls=True))
    with pytest.raises(RuntimeError, match="meets causal or grouped attention"):
        _causal(causal)


def _causal(model: Model) -> None:
    plain = nnf.scaled_dot_product_attention
    causal = Attention.forward

    def forward(self, x):
        return plain(self.query(x), self.key(x), self.value(x), is_causal=True)

    Attention.forward = forward
    try:
        model(TOKENS)
    finally:
        Attention.forward = causal


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
    fresh = Model()
    quantize_(fresh, Scheme())
    assert freeze_(fresh) == [f"{name}:input" for name in LAYERS[1:]]


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


@pytest.mark.parametrize("per_channel", [False, True])
def test_the_file_beside_the_model(per_channel: bool, tmp_path) -> None:
    model = trained(Scheme(per_channel=per_channel, attention_matmuls=True))
    freeze_(model)
    weights = io.BytesIO()
    torch.save(model.state_dict(), weights)
    weights.seek(0)
    path = save_quantization(model, tmp_path)
    assert path == tmp_path / FILE_NAME
    again = Model()
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
        load_quantization_(Model(), tmp_path)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        model = Model()
        quantize_(model, Scheme())
        model.train()
        model(TOKENS + 5 * rank)  # each process sees other tokens
        found = quantizers_of(model)
        if rank == 1:  # as after a first batch with a NaN
            late = Quantizer(ACTIVATION, torch.device("cpu"))
            found["head:input"] = model.head.quantizers["input"] = late
        own = {name: one.state() for name, one in found.items()}
        average_ranges_(list(found.values()))
        mean = {name: one.state() for name, one in found.items()}
        torch.save((own, mean), f"{folder}/rank{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_have_the_mean_of_their_ranges(tmp_path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    (one, mean), (two, other) = (
        torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    key = "block.query:input"
    assert not torch.equal(one[key]["max_val"], two[key]["max_val"])
    assert not two["head:input"]["ready"] and other["head:input"]["ready"]
    for name, state in mean.items():
        for key in ("min_val", "max_val", "scale", "zero_point"):
            assert torch.equal(state[key], other[name][key])  # the same bits
        for key in ("min_val", "max_val"):
            expected = (one[name][key] + two[name][key]) / 2
            if name == "head:input":
                expected = one[name][key]
            assert torch.equal(state[key], expected)


def test_a_plain_model_has_no_file(tmp_path) -> None:
    model = Model()
    assert save_quantization(model, tmp_path) is None
    assert not load_quantization_(model, tmp_path)
    assert not list(tmp_path.iterdir())
