"""Another probability of dropout than the model's own."""

import pytest
import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, ModernBertConfig
from transformers import ModernBertModel as ModernBert

from obert_modifiers.training.environment import dropout_of

SMALL = {"vocab_size": 20, "max_position_embeddings": 16, "pad_token_id": 0}


def distilbert() -> nn.Module:
    sizes = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16}
    return DistilBertModel(DistilBertConfig(**SMALL, **sizes, dropout=0.5))


def modernbert() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    chances = {"attention_dropout": 0.5, "mlp_dropout": 0.5, "embedding_dropout": 0.5}
    words = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}
    sizes |= {"intermediate_size": 16, "reference_compile": False}
    return ModernBert(ModernBertConfig(**SMALL, **sizes, **chances, **words))


@pytest.mark.parametrize("make", [distilbert, modernbert])
def test_without_dropout_training_computes_what_evaluation_does(make) -> None:
    torch.manual_seed(0)
    model, ids = make(), torch.arange(1, 13).reshape(2, 6)
    model.eval()
    expected = model(ids)[0]
    model.train()
    assert not torch.equal(model(ids)[0], expected)
    with dropout_of(model, 0.0):
        assert torch.equal(model(ids)[0], expected)
    assert not torch.equal(model(ids)[0], expected)  # as before


def test_none_keeps_the_models_own() -> None:
    model = nn.Sequential(nn.Dropout(0.3))
    with dropout_of(model, None):
        assert model[0].p == 0.3
    with pytest.raises(KeyError), dropout_of(model, 0.1):
        assert model[0].p == 0.1
        raise KeyError
    assert model[0].p == 0.3


def test_a_probability_that_is_an_integer_is_one() -> None:
    model = nn.Sequential(nn.Dropout(0), nn.Dropout(0.3))  # as JSON may have it
    with dropout_of(model, 0.1):
        assert [module.p for module in model] == [0.1, 0.1]
    assert [module.p for module in model] == [0, 0.3]


def test_another_p_is_none() -> None:
    model = nn.ModuleList([nn.Dropout(0.3), nn.TripletMarginLoss(p=2.0)])
    with dropout_of(model, 0.1):
        assert (model[0].p, model[1].p) == (0.1, 2.0)


def test_a_model_without_dropout_is_an_error() -> None:
    with pytest.raises(ValueError, match="dropout=0.1 has no dropout"):
        with dropout_of(nn.Linear(2, 2), 0.1):
            pass
