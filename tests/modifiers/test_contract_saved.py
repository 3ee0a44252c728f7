"""What every modifier leaves is a model that loads where this package is not.

A model that QATModifier trained loads as a plain one with its float weights, of which
pruned ones are zero; ``load_quantization_`` puts it on its 8-bit grids again.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from obert_modifiers import modifiers
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.quantization.scales import (
    load_quantization_,
    save_quantization,
)
from obert_modifiers.modifiers._targets import encoder_weights
from tests.core.models import remove_quantization_
from tests.modifiers.driving import drive, name_of
from tests.modifiers.table import TABLE

SHAPE = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
    "initializer_range": 0.3,
}
LOAD = """
import sys
sys.modules["obert_modifiers"] = sys.modules["sparseml"] = None
import torch
from transformers import AutoModelForSequenceClassification
for folder in sys.argv[1:]:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values()), report
    ids = torch.arange(10).reshape(2, 5)
    with torch.no_grad():
        torch.save(model.eval()(input_ids=ids).logits, f"{folder}/found.pt")
"""


def load_in_another(cwd, *folders: str) -> subprocess.CompletedProcess:
    """Load saved models in a process that has not this package."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, "-c", LOAD, *folders]
    return subprocess.run(words, cwd=cwd, env=clean, capture_output=True, text=True)


def inputs(seed: int, size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (size, 5), generator=generator)
    return {"input_ids": ids, "labels": ids.sum(dim=1) % 2}


def losses(model, batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def trained(row) -> torch.nn.Module:
    """Run the modifier of a row on a tiny BERT, past its last event."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SHAPE))
    keys = {**row.keys, **({"ignore": ["classifier"]} if "ignore" in row.keys else {})}
    modifier, extras = row.cls(**keys), dict(row.extras)
    if "gradient_source" in extras:
        extras["gradient_source"] = GradientSource(
            lambda request: [inputs(100 * request.draw + i) for i in range(6)], losses
        )
    modifier.initialize(model, **extras)

    def loss(step: int, *where) -> torch.Tensor:
        batch = inputs(step)
        outputs = model(**batch)
        given = {"student_outputs": outputs, "student_inputs": batch}
        return modifier.loss_update(outputs.loss, *where, **given)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    drive(modifier, model, optimizer, 14, loss=loss)
    modifier.finalize(model)
    return model.eval()


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(10).reshape(2, 5)).logits


@pytest.mark.slow  # a process of its own, and 20 small runs
def test_every_saved_model_loads_without_us(tmp_path) -> None:
    expected, on_grids = {}, {}
    for place, row in enumerate(TABLE):
        model, folder = trained(row), tmp_path / str(place)
        model.save_pretrained(folder)
        if row.cls is modifiers.QATModifier:
            save_quantization(model, folder)
            on_grids[place] = logits_of(model)
            remove_quantization_(model)
        expected[place] = logits_of(model)
    folders = [str(tmp_path / str(place)) for place in expected]
    done = load_in_another(tmp_path, *folders)
    assert done.returncode == 0, done.stderr
    assert len(expected) == len(TABLE) and len(on_grids) == 3
    for place, logits in expected.items():
        row, folder = TABLE[place], tmp_path / str(place)
        assert torch.equal(torch.load(folder / "found.pt"), logits), name_of(row)
        model = BertForSequenceClassification.from_pretrained(folder).eval()
        assert model.config.num_hidden_layers == (1 if row.drops else 2)
        weights = dict(model.named_parameters())
        zeros = sum(int((weights[n] == 0).sum()) for n in encoder_weights(model))
        assert zeros == row.final * (1 if row.drops else 2) * 512, name_of(row)
        if place in on_grids:
            assert load_quantization_(model, folder)
            assert torch.equal(logits_of(model), on_grids[place])
            assert not torch.equal(logits_of(model), logits)


@pytest.mark.slow
def test_the_oracle_sees_a_model_that_is_not_plain(tmp_path) -> None:
    row = replace(TABLE[0], keys={**TABLE[0].keys, "leave_enabled": True})
    model = trained(row)
    model.register_buffer("left_behind", torch.ones(1))
    model.save_pretrained(tmp_path)
    done = load_in_another(tmp_path, str(tmp_path))
    assert done.returncode != 0 and "left_behind" in done.stderr
