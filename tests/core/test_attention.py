"""Attention as plain products."""

from types import SimpleNamespace

import pytest
from torch import nn

from obert_modifiers.core.attention import plain_attention


def model_with(kind: str | None) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.config = model[1].config = SimpleNamespace(_attn_implementation=kind)
    model[0].config = SimpleNamespace()
    return model


class Parent:
    """A configuration that hands on what is set, as those of transformers do."""

    def __init__(self, part: SimpleNamespace) -> None:
        self.part, self.kind = part, "sdpa"

    @property
    def _attn_implementation(self) -> str:
        return self.kind

    @_attn_implementation.setter
    def _attn_implementation(self, kind: str) -> None:
        self.kind = self.part._attn_implementation = kind


def test_a_part_that_computes_in_another_way_gets_its_own_back() -> None:
    model = model_with("eager")
    model.config = Parent(model[1].config)
    with plain_attention(model):
        assert model.config.kind == model[1].config._attn_implementation == "eager"
    assert model.config.kind == "sdpa"
    assert model[1].config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["sdpa", "eager", None])
def test_what_a_model_computes_with_comes_back(kind: str | None) -> None:
    model = model_with(kind)
    with pytest.raises(KeyError), plain_attention(model):
        wanted = None if kind is None else "eager"
        assert model.config._attn_implementation == wanted
        raise KeyError
    assert model.config._attn_implementation == kind
    assert vars(model[0].config) == {}
