"""Which weights the papers count."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from obert_modifiers.modifiers._targets import (
    encoder_weights,
    non_embedding_weights,
    unwrap,
)

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}


def numel(model, names) -> int:
    return sum(model.get_parameter(name).numel() for name in names)


# oBERTa, Table 18, column "Prunable"; of models with a head for two classes, as the
# column "Parameters" shows.
@pytest.mark.parametrize(
    ("layers", "parameters", "prunable"),
    [
        (12, 124_647_170, 85_526_016),
        (6, 82_119_938, 43_058_688),
        (3, 60_856_322, 21_825_024),
    ],
)
def test_non_embedding_weights_are_those_of_obertas_table_18(
    layers: int, parameters: int, prunable: int
) -> None:
    with torch.device("meta"):
        config = RobertaConfig(**ROBERTA, num_hidden_layers=layers)
        model = RobertaForSequenceClassification(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert numel(model, non_embedding_weights(model)) == prunable


def test_encoder_weights_of_bert_base_are_85_million() -> None:
    with torch.device("meta"):
        model = BertForQuestionAnswering(BertConfig())
    assert numel(model, encoder_weights(model)) == 12 * (4 * 768**2 + 2 * 768 * 3072)


def test_a_weight_shared_with_an_embedding_is_an_embedding() -> None:
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig(num_hidden_layers=1))
    names = non_embedding_weights(model)
    assert "cls.predictions.transform.dense.weight" in names
    assert not any("embedding" in name or "decoder" in name for name in names)


def test_wrappers_come_off() -> None:
    model = torch.nn.Linear(2, 2)
    assert unwrap(torch.nn.DataParallel(model)) is model
