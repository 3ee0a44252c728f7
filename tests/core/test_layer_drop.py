"""Which layers stay, and what dropping the others leaves behind."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from obert_modifiers.core.layer_drop import (
    choose_layers,
    drop_layers_,
    find_layers,
    plan_layers,
)


class Layer(nn.Module):
    """A layer that knows its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_idx = number
        self.inner = nn.Linear(3, 3)
        self.inner.layer_id = number
        self.inner.width = number  # no number of a layer, though equal

    def forward(self, values):
        return torch.tanh(self.inner(values)) + values


class Encoder(nn.Module):
    """Layers in a list, with a configuration and copies of its numbers."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.n_layers = config.num_hidden_layers
        self.layers = nn.ModuleList(Layer(i) for i in range(self.n_layers))

    def forward(self, values):
        for layer in self.layers:
            values = layer(values)
        return values


class Model(nn.Module):
    def __init__(self, total: int = 12) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            num_hidden_layers=total,
            layer_types=[f"type {i}" for i in range(total)],
            ids=list(range(total)),
            use_cache=True,
        )
        self.encoder = Encoder(self.config)
        self.heads = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    def forward(self, values):
        return self.heads[0](self.encoder(values))


def by_hand(model: Model, keep: list[int], values: torch.Tensor) -> torch.Tensor:
    """Run the layers that stay one by one, in the dense model."""
    for index in keep:
        values = model.encoder.layers[index](values)
    return model.heads[0](values)


@pytest.mark.parametrize(
    ("total", "keep", "choice", "kept"),
    [
        (12, 3, None, (0, 6, 11)),
        (12, 3, "first_middle_last", (0, 6, 11)),
        (12, 3, "interleaved", (0, 4, 11)),
        (12, 6, None, (0, 2, 4, 6, 8, 11)),
        (12, 6, "interleaved", (0, 2, 4, 6, 8, 11)),
        (24, 14, None, (0, 1, 3, 5, 6, 8, 10, 12, 13, 15, 17, 18, 20, 23)),
        (6, 3, None, (0, 3, 5)),
        (4, 3, None, (0, 2, 3)),
        (4, 2, None, (0, 3)),
        (12, [0, 5, 11], None, (0, 5, 11)),
        (2, [1], None, (1,)),
    ],
)
def test_choices(total, keep, choice, kept) -> None:
    assert choose_layers(total, keep, choice) == kept


def test_every_count_keeps_so_many_different_layers() -> None:
    for total in range(3, 25):
        for keep in range(2, total):
            kept = choose_layers(total, keep)
            assert len(kept) == keep and list(kept) == sorted(set(kept))
            assert kept[0] == 0 and kept[-1] == total - 1


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (4, "keep=4 drops none of the model's 4 layers; expected fewer"),
        ([0, 5], r"keep=\[0, 5\] names layer 5 .* expected indices from 0 to 3;"),
        ([0, 1, 2, 3], r"keep=\[0, 1, 2, 3\] drops none of .* expected fewer"),
    ],
)
def test_refused_choices(keep, message) -> None:
    with pytest.raises(ValueError, match=message):
        plan_layers(Model(4), keep)


@pytest.mark.parametrize("keep", [[0, 6, 11], [1, 2], [3]])
def test_the_rest_computes_what_the_kept_layers_compute(keep) -> None:
    torch.manual_seed(0)
    model, values = Model(), torch.randn(5, 3)
    dense = copy.deepcopy(model)
    with torch.no_grad():
        expected = by_hand(dense, keep, values)
        dropped = drop_layers_(model, plan_layers(model, keep))
        assert torch.equal(model(values), expected)
        # Control: other layers give another result.
        wrong = by_hand(dense, [index - 1 for index in keep], values)
        assert not torch.allclose(model(values), wrong, atol=1e-3)
    assert (dropped.name, dropped.total) == ("encoder.layers", 12)
    assert dropped.kept == tuple(keep)
    assert len(dropped.parameters) == 2 * (12 - len(keep))


def test_everything_is_numbered_anew() -> None:
    model, keep = Model(), (0, 6, 11)
    layers, config = model.encoder.layers, model.config
    names = [n for n, _ in model.named_parameters()]
    drop_layers_(model, keep)
    assert model.encoder.layers is layers
    assert [layer.layer_idx for layer in layers] == [0, 1, 2]
    assert [layer.inner.layer_id for layer in layers] == [0, 1, 2]
    assert [layer.inner.width for layer in layers] == [0, 6, 11]
    assert model.encoder.n_layers == 3
    assert model.config is model.encoder.config
    assert model.config.num_hidden_layers == 3
    assert model.config.layer_types == ["type 0", "type 6", "type 11"]
    assert model.config.ids == list(range(12))
    assert [n for n, _ in model.named_parameters()] == names[:6] + names[24:]
    # Another model with the same configuration is left alone.
    assert config.num_hidden_layers == 12 and len(config.layer_types) == 12


def test_shared_parameters_are_not_gone() -> None:
    model = Model(4)
    model.encoder.layers[1].inner.weight = model.encoder.layers[0].inner.weight
    dropped = drop_layers_(model, (0, 3))
    kept = {id(p) for p in model.parameters()}
    assert len(dropped.parameters) == 3
    assert not kept & {id(p) for p in dropped.parameters}


def test_models_without_one_list_of_layers() -> None:
    assert find_layers(Model(4))[0] == "encoder.layers"
    two = nn.ModuleDict({"a": Model(4), "b": Model(4)})
    lists = r"a.encoder.layers, a.heads, b.encoder.layers, b.heads"
    with pytest.raises(ValueError, match=rf"model=ModuleDict has 4 lists \({lists}\)"):
        find_layers(two)
    shared = Model(4)
    shared.config.num_hidden_layers = 5
    with pytest.raises(ValueError, match="has no list of layers.* of 5 layers that"):
        find_layers(shared)
    nested = nn.ModuleList(nn.ModuleList([nn.Linear(2, 2)] * 3) for _ in range(2))
    assert find_layers(nn.Sequential(nested))[0] == "0"


def test_layers_that_cannot_take_the_place_of_others() -> None:
    model = Model(4)
    model.encoder.layers[0].extra = nn.Linear(3, 1)
    message = r"keep=\[1, 3\] puts layer 1 .* layer 0, .* \(extra.bias\); expected"
    with pytest.raises(ValueError, match=message):
        plan_layers(model, [1, 3])
    assert plan_layers(model, [0, 3]) == (0, 3)
    model.config.scale_by_layer_idx = True
    with pytest.raises(ValueError, match="has scale_by_layer_idx, by which a layer"):
        plan_layers(model, [0, 3])
