"""The scales in a file beside the model."""

import io
import json

import pytest
import torch
from torch import nn

from obert_modifiers.core.quantization.scales import (
    FILE_NAME,
    load_quantization_,
    save_quantization,
)
from obert_modifiers.core.quantization.scheme import Scheme, freeze_, quantizers_of
from tests.core.models import TOKENS, Attending, trained


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
