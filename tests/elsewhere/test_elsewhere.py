"""The core in other libraries: Composer and llm-compressor, without SparseML.

With the libraries themselves where they are installed, else with stand-ins for their
documented interfaces. No import here needs SparseML, transformers or accelerate.
"""

import ast
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.elsewhere import stand_ins

FOLDER = Path(__file__).parents[2] / "integrations"
RATES = {"lr": 1e-2, "weight_decay": 0.1}
FILES = ("composer/obert.py", "llmcompressor/obert.py")
REAL_COMPOSER = stand_ins.installed("composer")
REAL_LLM_COMPRESSOR = stand_ins.installed("llmcompressor")


def load(name: str, monkeypatch) -> types.SimpleNamespace:
    before = dict(sys.modules)
    stand_ins.use_stand_ins()
    for added in set(sys.modules) - set(before):
        monkeypatch.setitem(sys.modules, added, sys.modules.pop(added))
    return types.SimpleNamespace(**runpy.run_path(str(FOLDER / name)))


class Body(nn.Module):
    """An embedding, two layers in a list, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 2)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return self.head(hidden.mean(dim=1))

    def weights(self) -> list[torch.Tensor]:
        return [layer[i].weight for layer in self.layers for i in (0, 2)]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 11, (64, 5), generator=torch.Generator().manual_seed(0))
    return tokens, tokens.sum(dim=1) % 2


def zeros(weights) -> int:
    return sum(int((weight == 0).sum()) for weight in weights)


@pytest.mark.parametrize("name", FILES)
def test_it_needs_the_core_alone_and_few_lines(name) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    nodes = ast.walk(ast.parse(text))
    imports = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
    found = {getattr(n, "module", None) or n.names[0].name for n in imports}
    ours = {one for one in found if one.startswith("obert_modifiers")}
    assert ours and all(one.startswith("obert_modifiers.core.") for one in ours)
    assert not {one.split(".")[0] for one in found} & {"sparseml", "accelerate"}


def composed(algorithm, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    dataset = torch.utils.data.TensorDataset(*rows())
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)

    class Methods:
        def forward(self, batch):
            return self.logits(batch[0])

        def loss(self, outputs, batch):
            return nn.functional.cross_entropy(outputs, batch[1])

    if not REAL_COMPOSER:
        model = type("Model", (Methods, Body), {})()
        optimizer = torch.optim.AdamW(model.parameters(), **RATES)
        logged = stand_ins.fit(model, loader, optimizer, algorithm, epochs)
        assert logged[-1]["obert/sparsity"] == 0.75
        return model
    from composer import ComposerModel, Trainer

    model = type("Model", (Methods, Body, ComposerModel), {})()
    optimizer = torch.optim.AdamW(model.parameters(), **RATES)
    how = {"max_duration": f"{epochs}ep", "device": "cpu", "progress_bar": False}
    how |= {"train_dataloader": loader, "algorithms": [algorithm]}
    Trainer(model=model, optimizers=optimizer, **how).fit()
    return model


def test_composer_prunes_gradually(monkeypatch) -> None:
    found = load("composer/obert.py", monkeypatch)
    config = found.SecondOrderConfig(num_grads=32, fisher_block_size=12)
    algorithm = found.OBERT(0.75, end_epoch=2.0, config=config)
    model = composed(algorithm, 3)
    assert zeros(model.weights()) == 0.75 * 384  # after an epoch without events
    assert (model.head.weight != 0).all() and (model.embedding.weight != 0).all()
    assert (algorithm.draws, algorithm.last) == (5, 2.0)
    again = found.OBERT(0.75, end_epoch=2.0, config=config)
    again.load_state_dict(algorithm.state_dict())
    targets = found.linear_weights(model)
    for target, weight in zip(targets, model.weights(), strict=True):
        assert torch.equal(again.masks[target.name], weight != 0)


@pytest.mark.parametrize("mask_type", ["unstructured", "2:4"])
def test_llm_compressor_prunes_in_one_shot(mask_type, monkeypatch, tmp_path) -> None:
    found = load("llmcompressor/obert.py", monkeypatch)
    keys = {"sparsity": 0.5, "num_grads": 32, "fisher_block_size": 24}
    modifier = found.OBERTModifier(mask_type=mask_type, **keys)
    tokens, labels = rows()
    batches = [
        {"input_ids": tokens[i : i + 8], "labels": labels[i : i + 8]}
        for i in range(0, 64, 8)
    ]
    model, weights = tiny_model(tmp_path)
    before = [weight.detach().clone() for weight in weights]
    if REAL_LLM_COMPRESSOR:
        from llmcompressor import oneshot

        loader = torch.utils.data.DataLoader(batches, batch_size=None)
        oneshot(model=model, recipe=modifier, dataset=loader)
    else:
        stand_ins.oneshot(model, modifier, batches)
    total = sum(weight.numel() for weight in weights)
    assert zeros(weights) == total // 2
    kept = [(a != b)[b != 0].any() for a, b in zip(before, weights, strict=True)]
    assert all(kept)  # what remains was updated
    if mask_type == "2:4":
        for weight in weights:
            assert ((weight.reshape(-1, 4) != 0).sum(dim=1) == 2).all()


def tiny_model(folder: Path) -> tuple[nn.Module, list[torch.Tensor]]:
    """A model that gives its loss; llm-compressor wants one of the hub's classes."""
    if REAL_LLM_COMPRESSOR:
        from transformers import BertConfig, BertForSequenceClassification

        shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(vocab_size=11, num_hidden_layers=2, **shape)
        BertForSequenceClassification(config).save_pretrained(folder)
        model = BertForSequenceClassification.from_pretrained(folder)
        named = model.bert.encoder.named_parameters()
        return model, [p for n, p in named if n.endswith("weight") and p.ndim == 2]

    class Model(Body):
        def forward(self, input_ids, labels):
            loss = nn.functional.cross_entropy(self.logits(input_ids), labels)
            return types.SimpleNamespace(loss=loss)

    model = Model()
    return model, model.weights()


def test_names_that_match_nothing_are_an_error(monkeypatch) -> None:
    found = load("llmcompressor/obert.py", monkeypatch)
    modifier = found.OBERTModifier(sparsity=0.5, targets=["re:decoder.*"])
    state = types.SimpleNamespace(model=Body())
    with pytest.raises(ValueError, match="match no linear layer"):
        modifier.on_initialize(state)
