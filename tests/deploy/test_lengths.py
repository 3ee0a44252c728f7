"""Models whose graph depends on the length: right at every length, or refused."""

import pytest
import torch
import transformers

from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy import checks
from obert_modifiers.deploy.onnx import export_onnx, trace
from tests.deploy.models import SHAPE, agrees, farthest, inputs, quantized_, run

DEBERTA = {"relative_attention": True, "type_vocab_size": 0}
FAMILIES = {
    "ModernBert": {
        "num_hidden_layers": 4,
        "local_attention": 16,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "DebertaV2": DEBERTA
    | {"pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True},
    "Deberta": DEBERTA
    | {"pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
}
LENGTHS = ((1, 5), (3, 8), (2, 17), (3, 40), (2, 96))
assert (len(FAMILIES), len(LENGTHS)) == (3, 5)


def make(family: str, int8: bool):
    torch.manual_seed(0)
    shape = SHAPE | {"max_position_embeddings": 96, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**shape | FAMILIES[family])
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    if int8:
        quantized_(model, Scheme(), *(inputs(4, 50, seed) for seed in range(3)))
    return model.eval()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_is_right_at_every_length(family, int8, tmp_path) -> None:
    model, sample = make(family, int8), inputs(1, 7)
    found = export_onnx(model, sample, tmp_path / "model.onnx")
    for rows, tokens in LENGTHS:
        batch = inputs(max(rows, 2), tokens, 7)
        assert agrees(model, found, batch, exactly=not int8), tokens
    said = checks.compare(model, sample, found.path, "onnxruntime", int8)
    assert "2x96" in said


def test_a_file_that_is_right_at_one_length_is_refused(tmp_path, monkeypatch) -> None:
    """The planted exporter hands over a mask of its own, in which windows are lost."""
    monkeypatch.setattr(trace, "_has_window", lambda model: False)
    monkeypatch.setattr(trace, "_takes_plain_mask", lambda traced, sample: True)
    model, sample = make("ModernBert", False), inputs(1, 7)
    found = export_onnx(model, sample, tmp_path / "model.onnx")
    short = inputs(2, 7, 7)
    with torch.no_grad():
        assert farthest(run(found.path, short), [model(**short).logits]) < 1e-4
    with pytest.raises(ValueError, match="gives other outputs than the model"):
        checks.compare(model, sample, found.path, "onnxruntime", False)
