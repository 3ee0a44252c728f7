"""The recipe inside the Hugging Face Trainer."""

from pathlib import Path

import datasets
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from obert_modifiers.training.trainer_callback import RecipeCallback, sample_losses
from tests import tiny

DISTIL = """\
  - !LogitDistillationModifier
      hardness: 0.5
      temperature: 2.0
"""
DROP = "  - !LayerDropModifier\n      keep: [0]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


def make_trainer(folder: Path, out: Path, callback, **options) -> Trainer:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = datasets.Dataset.from_list(tiny.sentences(40))
    rows = rows.map(lambda row: tokenizer(row["sentence"])).remove_columns("sentence")
    arguments = TrainingArguments(
        output_dir=str(out),
        **{
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 1,
            **options,
        },
    )
    return Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[] if callback is None else [callback],
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_recipe_runs_in_the_trainer(folder, tmp_path, accumulation) -> None:
    callback = RecipeCallback(tiny.RECIPE + DISTIL, teacher="self")
    trainer = make_trainer(
        folder, tmp_path, callback, gradient_accumulation_steps=accumulation
    )
    trainer.train()
    steps = -(-10 // accumulation)
    assert [round(event.epoch * steps) for event in callback.manager.events] == [
        -(-steps // 2),
        steps,
        -(-3 * steps // 2),
    ]
    assert tiny.sparsity(trainer.model) == pytest.approx(0.8, abs=1e-4)
    # The recipe's last rate, near the end of its way from 5e-3 to 0.
    assert trainer.optimizer.param_groups[0]["lr"] < 5e-3
    callback.save(tmp_path)
    assert (tmp_path / "recipe.yaml").is_file()
    assert not trainer.model._forward_hooks and not trainer.model._forward_pre_hooks


def test_layers_are_dropped_before_there_is_an_optimizer(folder, tmp_path) -> None:
    trainer = make_trainer(folder, tmp_path, RecipeCallback(tiny.RECIPE + DROP))
    trainer.train()
    assert trainer.model.config.num_hidden_layers == 1
    held = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}


def test_the_recipes_rate_is_the_one_that_steps(folder, tmp_path) -> None:
    callback = RecipeCallback(tiny.RECIPE)
    trainer = make_trainer(folder, tmp_path, callback)
    seen = []
    inner = callback.on_pre_optimizer_step

    def watch(*args, **kwargs) -> None:
        inner(*args, **kwargs)
        seen.append(trainer.optimizer.param_groups[0]["lr"])

    callback.on_pre_optimizer_step = watch
    trainer.train()
    expected = [5e-3 * (1 - step / 20) for step in range(20)]
    # SparseML's function ends a step early.
    assert seen == pytest.approx(expected, abs=5e-3 / 19)


@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_distillation_is_in_the_loss(folder, tmp_path, hardness) -> None:
    """With hardness 1 and the dense model as teacher nothing pulls before pruning."""
    recipe = (
        "modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0.0\n"
        "      end_epoch: 1.0\n" + DISTIL.replace("0.5", str(hardness))
    )
    callback = RecipeCallback(recipe, teacher="self")
    # Adam would blow rounding errors up to whole steps.
    options = {"num_train_epochs": 1, "optim": "sgd"}
    trainer = make_trainer(folder, tmp_path, callback, **options)
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if hardness == 1.0:
        assert max(losses) < 1e-6
    else:
        assert min(losses) > 1e-2


STOP = """\
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 6.0
  - !EarlyStoppingModifier
      metric: loss
      mode: max
      patience: 2
"""


def test_early_stopping_ends_it_with_the_best_weights(folder, tmp_path) -> None:
    """The loss falls, and as a larger one is asked for, the first was the best."""
    options = {"num_train_epochs": 6, "eval_strategy": "epoch"}
    trainer = make_trainer(folder, tmp_path, RecipeCallback(STOP), **options)
    seen = []
    inner = trainer.evaluate

    def evaluate(*args, **kwargs):
        seen.append([p.detach().clone() for p in trainer.model.parameters()])
        return inner(*args, **kwargs)

    trainer.evaluate = evaluate
    trainer.train()
    losses = [r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r]
    assert len(seen) == len(losses) == 3 and losses[0] > max(losses[1:])
    for now, best in zip(trainer.model.parameters(), seen[0], strict=True):
        assert torch.equal(now, best)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0])
    refused(folder, tmp_path, RecipeCallback(STOP), "nothing", num_train_epochs=6)


QAT = """\
  - !QATModifier
      start_epoch: 1.6
"""


class Stopping(TrainerCallback):
    """Ends a run after some steps, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def resumed(folder, out, recipe, at: int, **options):
    trainer = make_trainer(
        folder, out, RecipeCallback(recipe, teacher="self"), **options
    )
    trainer.add_callback(Stopping(at))
    trainer.train()
    again = RecipeCallback(recipe, teacher="self")
    trainer = make_trainer(folder, out, again, **options)
    trainer.train(resume_from_checkpoint=True)
    return trainer, again


# Before, at and after the pruning events at steps 5, 10 and 15, and during QAT.
@pytest.mark.parametrize(
    "at",
    [5, 12, 18, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 6, 10, 15))],
)
def test_a_run_that_is_resumed_ends_with_the_same_bits(folder, tmp_path, at) -> None:
    recipe = tiny.RECIPE + DISTIL + QAT
    options = {"save_strategy": "steps", "save_steps": 1000}
    whole = make_trainer(
        folder, tmp_path / "a", RecipeCallback(recipe, teacher="self"), **options
    )
    whole.train()
    found, callback = resumed(folder, tmp_path / "b", recipe, at, **options)
    for (name, one), two in zip(
        whole.model.state_dict().items(), found.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert len(callback.manager.events) == 3
    assert tiny.sparsity(found.model) == pytest.approx(0.8, abs=1e-4)


def test_a_state_that_is_not_restored_is_found(folder, tmp_path, monkeypatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(RecipeCallback, "_resume", lambda self, model, checkpoint: None)
    _, callback = resumed(
        folder, tmp_path, tiny.RECIPE, 12, save_strategy="steps", save_steps=1000
    )
    assert len(callback.manager.events) != 3


def test_a_checkpoint_of_another_recipe_is_refused(folder, tmp_path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1000}
    trainer = make_trainer(folder, tmp_path, RecipeCallback(tiny.RECIPE), **options)
    trainer.add_callback(Stopping(3))
    trainer.train()
    other = tiny.RECIPE.replace("num_grads: 16", "num_grads: 12")
    trainer = make_trainer(folder, tmp_path, RecipeCallback(other), **options)
    with pytest.raises(ValueError, match="another one than the checkpoint's"):
        trainer.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-3" / "recipe_state.json").unlink()
    trainer = make_trainer(folder, tmp_path, RecipeCallback(tiny.RECIPE), **options)
    with pytest.raises(ValueError, match="has no recipe_state.json"):
        trainer.train(resume_from_checkpoint=True)


def refused(folder, out, callback, part, **options) -> None:
    trainer = make_trainer(folder, out, callback, **options)
    with pytest.raises(ValueError, match=part):
        trainer.train()


def test_what_does_not_go_with_a_recipe_is_refused(folder, tmp_path) -> None:
    recipe = RecipeCallback(tiny.RECIPE)
    refused(folder, tmp_path, recipe, "expected the recipe's 2", num_train_epochs=3)
    late = make_trainer(folder, tmp_path, None)
    late.add_callback(RecipeCallback(tiny.RECIPE))
    with pytest.raises(ValueError, match="Trainer that exists"):
        late.train()
    silent = RecipeCallback(tiny.RECIPE + DISTIL, teacher="self")
    refused(folder, tmp_path, silent, "loss=None", label_smoothing_factor=0.1)


def test_sample_losses_of_tokens_are_means_over_labelled_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator)
    labels = torch.tensor([[1, -100, 2, 3], [-100] * 4, [0, 0, 0, 0]])
    found = sample_losses({"logits": logits}, {"labels": labels})
    for row, loss in enumerate(found):
        kept = labels[row] != -100
        if not kept.any():
            assert loss == 0.0
            continue
        expected = cross_entropy(logits[row][kept], labels[row][kept])
        torch.testing.assert_close(loss, expected)


def test_sample_losses_of_numbers_and_classes() -> None:
    logits = torch.tensor([[0.5], [2.0]])
    found = sample_losses({"logits": logits}, {"labels": torch.tensor([1.0, 2.0])})
    torch.testing.assert_close(found, torch.tensor([0.25, 0.0]))
    classes = torch.tensor([[0.0, 0.0]])
    found = sample_losses({"logits": classes}, {"labels": torch.tensor([1])})
    torch.testing.assert_close(found, torch.tensor([2.0]).log())


@pytest.mark.parametrize("width", [3, 4])
def test_sample_losses_of_several_labels_are_means_over_them(width) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, width, generator=generator)
    labels = torch.randint(0, 2, (5, width), generator=generator).float()
    found = sample_losses({"logits": logits}, {"labels": labels})
    odds = logits.double().sigmoid()
    right = torch.where(labels.bool(), odds, 1.0 - odds)
    torch.testing.assert_close(found.double(), -right.log().mean(-1))
    # Controls: squared error, and the sum over the labels.
    for planted in ((logits - labels).square().mean(-1), found * width):
        assert not torch.allclose(planted, found)
    numbers = sample_losses({"logits": logits}, {"labels": labels}, "regression")
    torch.testing.assert_close(numbers, (logits - labels).square().mean(-1))


@pytest.mark.parametrize("width", [3, 4])
def test_several_labels_are_pruned_and_distilled(folder, tmp_path, width) -> None:
    callback = RecipeCallback(tiny.RECIPE + DISTIL, teacher="self")
    trainer = make_trainer(folder, tmp_path, None)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=width, problem_type="multi_label_classification"
    )
    rows = trainer.train_dataset.map(
        lambda row, i: {"labels": [float((i >> k) & 1) for k in range(width)]},
        with_indices=True,
        remove_columns=["label"],
    )
    trainer = Trainer(
        model,
        trainer.args,
        train_dataset=rows,
        data_collator=trainer.data_collator,
        callbacks=[callback],
    )
    trainer.train()
    assert len(callback.manager.events) == 3
    assert tiny.sparsity(model) == pytest.approx(0.8, abs=1e-4)


class OwnLoss(Trainer):
    """Trains on a loss of its own; ``part`` of it is the model's."""

    part = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, inputs["labels"])
        if self.part:
            loss = loss + self.part * outputs.loss
        return (loss, outputs) if return_outputs else loss


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_loss_of_ones_own_does_not_switch_distillation_off(
    folder, tmp_path, part
) -> None:
    callback = RecipeCallback(tiny.RECIPE + DISTIL, teacher="self")
    trainer = make_trainer(folder, tmp_path, callback)
    trainer.__class__ = type("Own", (OwnLoss,), {"part": part})
    if part:
        trainer.train()
        assert len(callback.manager.events) == 3
    else:
        with pytest.raises(ValueError, match="compute_loss gives a loss without the"):
            trainer.train()


class Stream(torch.utils.data.IterableDataset):
    """Samples without a length."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_data_without_a_length_is_refused(folder, tmp_path) -> None:
    trainer = make_trainer(folder, tmp_path, RecipeCallback(tiny.RECIPE), max_steps=20)
    trainer.train_dataset = Stream(trainer.train_dataset)
    with pytest.raises(ValueError, match="train_dataset=Stream has no length"):
        trainer.train()
