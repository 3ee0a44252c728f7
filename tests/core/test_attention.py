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


@pytest.mark.parametrize("kind", ["sdpa", "eager", None])
def test_what_a_model_computes_with_comes_back(kind: str | None) -> None:
    model = model_with(kind)
    with pytest.raises(KeyError), plain_attention(model):
        wanted = None if kind is None else "eager"
        assert model.config._attn_implementation == wanted
        raise KeyError
    assert model.config._attn_implementation == kind
    assert vars(model[0].config) == {}
