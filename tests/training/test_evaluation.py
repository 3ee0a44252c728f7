"""Evaluation: what a task keeps, of rows of any width, on one process or two."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from obert_modifiers.training import TrainConfig, evaluate, predict
from obert_modifiers.training.batches import TaskData
from tests.training import toy
from tests.training.processes import lines_of_ranks

LENGTHS = (3, 7, 1, 5, 2, 2, 6)


class Echo(nn.Module):
    """Gives each token's number, and a tenth of it, as logits."""

    def forward(self, input_ids):
        return {"logits": torch.stack([input_ids, 0.1 * input_ids], dim=-1)}


def samples(count: int = len(LENGTHS)) -> list[dict]:
    """Tokens of sample i are 10 i + 1, 10 i + 2, ..."""
    return [
        {"input_ids": [10 * i + t + 1 for t in range(LENGTHS[i])], "labels": i}
        for i in range(count)
    ]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    batch = {"input_ids": torch.tensor(ids)}
    if "labels" in rows[0]:
        batch["labels"] = torch.tensor([row["labels"] for row in rows])
    return batch


def keep(outputs, batch) -> dict[str, torch.Tensor]:
    return {
        "pairs": outputs["logits"],  # (k, T, 2)
        "ids": batch["input_ids"],  # (k, T)
        "first": batch["input_ids"][:, 0],  # (k,)
    }


def sample_loss(outputs, batch) -> torch.Tensor:
    return batch["labels"].float()


def metrics(pairs, ids, first) -> dict[str, int]:
    # Sample i stands in row i, whatever the batches were.
    assert first.tolist() == [10 * i + 1 for i in range(len(first))]
    for i, length in enumerate(LENGTHS[: len(first)]):
        expected = np.arange(10 * i + 1, 10 * i + 1 + length)
        assert (ids[i, :length] == expected).all()
        np.testing.assert_allclose(pairs[i, :length, 0], expected)
        # Padding of its batch, and then what fills rows up.
        assert set(ids[i, length:]) <= {0, -100}
        assert set(pairs[i, length:, 0]) <= {0.0, -np.inf}
    return {"widest": ids.shape[1], "filled": int((ids == -100).sum())}


TASK = TaskData([], samples(), collate, sample_loss, metrics, keep)
# Sorted by length, two at a time: widths 2, 3, 6 and 7, the last of one row.
FILLED = 2 * (7 - 2) + 2 * (7 - 3) + 2 * (7 - 6)
FIGURES = {"widest": 7, "filled": FILLED, "loss": 3.0, "samples": 7}


def config(folder) -> TrainConfig:
    return TrainConfig(Path(folder), per_device_eval_batch_size=2, cpu=True)


def test_rows_of_any_width_come_in_the_order_of_the_samples(tmp_path) -> None:
    assert evaluate(Echo(), TASK, config(tmp_path)) == FIGURES


def test_a_task_may_have_its_own_loss_and_count(tmp_path) -> None:
    task = replace(TASK, metrics=lambda **rows: {"loss": 0.25, "samples": 3})
    assert evaluate(Echo(), task, config(tmp_path)) == {"loss": 0.25, "samples": 3}


def test_figures_are_plain_numbers(tmp_path) -> None:
    """A checkpoint takes no others."""
    task = replace(toy.make_task(), metrics=lambda **_: {"accuracy": np.float64(0.5)})
    found = evaluate(toy.make_model(), task, toy.steady(tmp_path))
    assert found["accuracy"] == 0.5 and type(found["accuracy"]) is float


def test_further_sets_have_figures_of_their_own(tmp_path) -> None:
    task = replace(TASK, more_validation={"mm": samples(3)})
    found = evaluate(Echo(), task, config(tmp_path))
    assert (found["samples"], found["samples_mm"], found["loss_mm"]) == (7, 3, 1.0)


def test_predicting_needs_no_labels(tmp_path) -> None:
    plain = [{"input_ids": row["input_ids"]} for row in samples()]
    model = Echo().train()
    rows = predict(model, TASK, plain, config(tmp_path))
    assert set(rows) == {"pairs", "ids", "first"} and model.training
    assert rows["first"].tolist() == [1, 11, 21, 31, 41, 51, 61]


def test_each_epoch_is_announced_before_its_batches(tmp_path) -> None:
    said, data = [], toy.make_task(train=16, validation=4)

    def collated(rows):
        if len(rows) == 8:  # a training batch
            said.append("batch")
        return data.collate(rows)

    told = replace(data, collate=collated, start_epoch=said.append)
    toy.run(tmp_path, None, told, num_train_epochs=2)
    assert said == [0, "batch", "batch", 1, "batch", "batch"]


TWO = """
import os, sys, torch
from dataclasses import replace
from pathlib import Path
from tests.training import test_evaluation as t
from obert_modifiers.training import evaluate

found = evaluate(t.Echo(), t.TASK, t.config(sys.argv[1]))
# One batch, of which the other process has none.
small = replace(t.TASK, validation=t.samples(2))
one = evaluate(t.Echo(), small, t.config(sys.argv[1]))
Path(sys.argv[1], "rank" + os.environ["RANK"]).write_text(f"{found == t.FIGURES} {one}")
torch.distributed.destroy_process_group()
"""


def test_two_processes_gather_the_same(tmp_path) -> None:
    line = "True {'widest': 7, 'filled': 0, 'loss': 0.5, 'samples': 2}"
    assert lines_of_ranks(TWO, tmp_path) == [[line], [line]]
