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
from tests.training.processes import lines_of_ranks
from tests.training.toy import all_equal

DISTIL = """\
  - !LogitDistillationModifier
      hardness: 0.5
      temperature: 2.0
"""
DROP = "  - !LayerDropModifier\n      keep: [0]\n"
QAT = "  - !QATModifier\n      start_epoch: 1.6\n"
RANGE = "modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0.0\n      end_epoch: "
SAVING = {"save_strategy": "steps", "save_steps": 1000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def make(folder, tmp_path):
    """Return a function that makes a Trainer and the callback of its recipe."""

    def trainer(
        recipe, out=tmp_path, cls=Trainer, late=False, labels=None, how=None, **options
    ):
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = tiny.sentences(40)
        kinds = {}
        if labels is not None:
            for number, row in enumerate(rows):
                row["label"] = [float((number >> k) & 1) for k in range(labels)]
            problem = "multi_label_classification"
            kinds = {"num_labels": labels, "problem_type": problem}
        rows = datasets.Dataset.from_list(rows)
        rows = rows.map(lambda row: tokenizer(row["sentence"]))
        rows = rows.remove_columns("sentence").rename_column("label", "labels")
        settings = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 3e-3,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 1,
        }
        teacher = "self" if DISTIL.splitlines()[0] in recipe else None
        callback = RecipeCallback(recipe, teacher=teacher, **how or {})
        made = cls(
            AutoModelForSequenceClassification.from_pretrained(folder, **kinds),
            TrainingArguments(output_dir=str(out), **settings | options),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=None if late else [callback],
        )
        if late:
            made.add_callback(callback)
        return made, callback

    return trainer


def refused(made, message: str, **how) -> None:
    with pytest.raises(ValueError, match=message):
        made[0].train(**how)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_recipe_runs_in_the_trainer(make, tmp_path, accumulation) -> None:
    options = {"gradient_accumulation_steps": accumulation}
    trainer, callback = make(tiny.RECIPE + DISTIL, **options)
    trainer.train()
    steps = -(-10 // accumulation)
    made = [round(event.epoch * steps) for event in callback.manager.events]
    assert made == [-(-steps // 2), steps, -(-3 * steps // 2)]
    assert tiny.sparsity(trainer.model) == pytest.approx(0.8, abs=1e-4)
    # The recipe's last rate, near the end of its way from 5e-3 to 0.
    assert trainer.optimizer.param_groups[0]["lr"] < 5e-3
    callback.save(tmp_path)
    assert (tmp_path / "recipe.yaml").is_file()
    assert not trainer.model._forward_hooks and not trainer.model._forward_pre_hooks


def test_losses_of_a_batch_take_the_place_of_those_of_outputs(make, tmp_path) -> None:
    def losses(model, batch):
        inputs = {name: one for name, one in batch.items() if name != "labels"}
        return sample_losses(model(**inputs), batch)

    models = []
    for name, how in (("a", {}), ("b", {"losses": losses})):
        trainer, callback = make(tiny.RECIPE, tmp_path / name, how=how)
        trainer.train()
        assert len(callback.manager.events) == 3
        models.append(trainer.model)
    pairs = zip(*(model.parameters() for model in models), strict=True)
    # The samples are the same, in another order.
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-6) for pair in pairs)


def test_layers_are_dropped_before_there_is_an_optimizer(make) -> None:
    trainer, _ = make(tiny.RECIPE + DROP)
    trainer.train()
    assert trainer.model.config.num_hidden_layers == 1
    held = {id(p) for g in trainer.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}


def rates_of(trainer, callback) -> list[float]:
    """Train, and return the rate of each step."""
    seen = []
    inner = callback.on_pre_optimizer_step

    def watch(*args, **kwargs) -> None:
        inner(*args, **kwargs)
        seen.append(trainer.optimizer.param_groups[0]["lr"])

    callback.on_pre_optimizer_step = watch
    trainer.train()
    return seen


def test_the_recipes_rate_is_the_one_that_steps(make) -> None:
    trainer, callback = make(tiny.RECIPE)
    seen = rates_of(trainer, callback)
    expected = [5e-3 * (1 - step / 20) for step in range(20)]
    # SparseML's function ends a step early.
    assert seen == pytest.approx(expected, abs=5e-3 / 19)


def test_the_trainers_rate_steps_until_the_recipe_sets_one(make) -> None:
    """Not that of the first step throughout, which is 0 where it is warmed up."""
    recipe = f"""{RANGE}2.0
  - !SetLearningRateModifier
      start_epoch: 1.0
      learning_rate: 0.004
"""
    trainer, callback = make(recipe, warmup_steps=5)
    seen = rates_of(trainer, callback)
    assert seen[:6] == pytest.approx([3e-3 * k / 5 for k in range(6)])
    assert seen[10:] == [0.004] * 10


@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_distillation_is_in_the_loss(make, hardness) -> None:
    """With hardness 1 and the dense model as teacher nothing pulls before pruning."""
    recipe = f"{RANGE}1.0\n" + DISTIL.replace("0.5", str(hardness))
    # Adam would blow rounding errors up to whole steps.
    trainer, _ = make(recipe, num_train_epochs=1, optim="sgd")
    for module in trainer.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert max(losses) < 1e-6 if hardness == 1.0 else min(losses) > 1e-2


STOP = f"""{RANGE}6.0
  - !EarlyStoppingModifier
      metric: loss
      mode: max
      patience: 2
"""


def test_early_stopping_ends_it_with_the_best_weights(make) -> None:
    """The loss falls, and as a larger one is asked for, the first was the best."""
    trainer, _ = make(STOP, num_train_epochs=6, eval_strategy="epoch")
    seen = []
    inner = trainer.evaluate

    def evaluate(*args, **kwargs):
        seen.append([p.detach().clone() for p in trainer.model.parameters()])
        return inner(*args, **kwargs)

    trainer.evaluate = evaluate
    trainer.train()
    losses = [r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r]
    assert len(seen) == len(losses) == 3 and losses[0] > max(losses[1:])
    assert all_equal(trainer.model.parameters(), seen[0])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0])
    refused(make(STOP, num_train_epochs=6), "eval_strategy=no .*nothing")


AVERAGE = f"""{RANGE}3.0
  - !WeightAveragingModifier
      start_epoch: 1.0
"""


def test_several_sets_to_evaluate_on_are_refused_where_the_first_alone_counts(
    make,
) -> None:
    for recipe, wrong in ((AVERAGE, True), (f"{RANGE}3.0\n", False)):
        trainer, _ = made = make(recipe, num_train_epochs=3, eval_strategy="epoch")
        trainer.eval_dataset = dict.fromkeys("ab", trainer.eval_dataset)
        if wrong:
            refused(made, "eval_dataset has several data sets")
        else:
            trainer.train()


def test_it_evaluates_and_ends_with_the_average_and_trains_on(make) -> None:
    def run(recipe):
        trainer, _ = make(recipe, num_train_epochs=3, eval_strategy="epoch")
        states = {"eval": [], "step": []}
        inner = trainer.evaluate

        def keep(kind):
            states[kind].append([
                p.detach().clone() for p in trainer.model.parameters()
            ])

        class Watch(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
                keep("step")

        trainer.evaluate = lambda *a, **k: (keep("eval"), inner(*a, **k))[1]
        trainer.add_callback(Watch())
        trainer.train()
        return trainer, states

    trainer, states = run(AVERAGE)
    _, plain = run(f"{RANGE}3.0\n")
    assert all(map(all_equal, states["step"], plain["step"]))
    assert all(map(all_equal, states["eval"][:2], plain["eval"][:2]))
    means = [(a + b) / 2 for a, b in zip(*plain["eval"][1:], strict=True)]
    assert not all_equal(means, plain["eval"][2])
    for found in (states["eval"][2], trainer.model.parameters()):
        torch.testing.assert_close([*found], means, rtol=0.0, atol=1e-7)
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch"}
    best |= {"save_strategy": "epoch", "num_train_epochs": 3}
    refused(make(AVERAGE, **best), "load_best_model_at_end=True .* not averaged")


class Stopping(TrainerCallback):
    """Ends a run after some steps, with a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def stopped(make, recipe: str, at: int, **options) -> None:
    trainer, _ = make(recipe, **options)
    trainer.add_callback(Stopping(at))
    trainer.train()


def resumed(make, recipe: str, at: int, **options):
    stopped(make, recipe, at, **options)
    trainer, callback = make(recipe, **options)
    trainer.train(resume_from_checkpoint=True)
    return trainer, callback


# Before, at and after the pruning events at steps 5, 10 and 15, and during QAT.
@pytest.mark.parametrize(
    "at",
    [5, 12, 18, *(pytest.param(at, marks=pytest.mark.slow) for at in (3, 6, 10, 15))],
)
def test_a_run_that_is_resumed_ends_with_the_same_bits(make, tmp_path, at) -> None:
    recipe = tiny.RECIPE + DISTIL + QAT
    whole, _ = make(recipe, out=tmp_path / "a", **SAVING)
    whole.train()
    found, callback = resumed(make, recipe, at, out=tmp_path / "b", **SAVING)
    state, again = whole.model.state_dict(), found.model.state_dict()
    assert state.keys() == again.keys()
    assert [name for name in state if not torch.equal(state[name], again[name])] == []
    assert len(callback.manager.events) == 3
    assert tiny.sparsity(found.model) == pytest.approx(0.8, abs=1e-4)


def test_a_run_that_is_resumed_with_all_batches_again_stays_finite(make) -> None:
    options = {"ignore_data_skip": True, **SAVING}
    trainer, _ = resumed(make, f"{RANGE}2.0\n" + DISTIL, 5, **options)
    assert trainer.state.global_step == 20
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, -1.0)])
def test_what_is_trainable_is_so_after_a_resume(make, tmp_path, span) -> None:
    recipe = f"""{RANGE}2.0
  - !TrainableParamsModifier
      params: ["re:.*word_embeddings.*"]
      trainable: false
      start_epoch: {span[0]}
      end_epoch: {span[1]}
"""
    whole, _ = make(recipe, out=tmp_path / "a", **SAVING)
    whole.train()
    found, _ = resumed(make, recipe, 12, out=tmp_path / "b", **SAVING)
    models = whole.model, found.model
    states = (model.state_dict().values() for model in models)
    assert all_equal(*states)
    trained = [[p.requires_grad for p in model.parameters()] for model in models]
    assert trained[0] == trained[1]


def test_a_state_that_is_not_restored_is_found(make, monkeypatch) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(RecipeCallback, "_resume", lambda self, model, checkpoint: None)
    _, callback = resumed(make, tiny.RECIPE, 12, **SAVING)
    assert len(callback.manager.events) != 3


def test_a_checkpoint_of_another_recipe_is_refused(make, tmp_path) -> None:
    stopped(make, tiny.RECIPE, 3, **SAVING)
    other = make(tiny.RECIPE.replace("num_grads: 16", "num_grads: 12"), **SAVING)
    resume = {"resume_from_checkpoint": True}
    refused(other, "another one than the checkpoint's", **resume)
    (tmp_path / "checkpoint-3" / "recipe_state.json").unlink()
    refused(make(tiny.RECIPE, **SAVING), "has no recipe_state.json", **resume)


def test_what_does_not_go_with_a_recipe_is_refused(make) -> None:
    refused(make(tiny.RECIPE, num_train_epochs=3), "expected the recipe's 2")
    refused(make(tiny.RECIPE, late=True), "Trainer that exists")
    silent = make(tiny.RECIPE + DISTIL, label_smoothing_factor=0.1)
    refused(silent, "loss=None")


def test_sample_losses_of_tokens_are_means_over_labelled_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator)
    labels = torch.tensor([[1, -100, 2, 3], [-100] * 4, [0, 0, 0, 0]])
    first, without, last = sample_losses({"logits": logits}, {"labels": labels})
    assert without == 0.0
    kept = labels[0] != -100
    torch.testing.assert_close(first, cross_entropy(logits[0][kept], labels[0][kept]))
    torch.testing.assert_close(last, cross_entropy(logits[2], labels[2]))


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        ([[0.5], [2.0]], [1.0, 2.0], torch.tensor([0.25, 0.0])),
        ([[0.0, 0.0]], [1], torch.tensor([2.0]).log()),
    ],
)
def test_sample_losses_of_numbers_and_classes(logits, labels, expected) -> None:
    outputs, batch = {"logits": torch.tensor(logits)}, {"labels": torch.tensor(labels)}
    torch.testing.assert_close(sample_losses(outputs, batch), expected)


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
def test_several_labels_are_pruned_and_distilled(make, width) -> None:
    trainer, callback = make(tiny.RECIPE + DISTIL, labels=width)
    trainer.train()
    assert len(callback.manager.events) == 3
    assert tiny.sparsity(trainer.model) == pytest.approx(0.8, abs=1e-4)


class OwnLoss(Trainer):
    """Trains on a loss of its own; ``part`` of it is the model's."""

    part = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits, inputs["labels"])
        if self.part:
            loss = loss + self.part * outputs.loss
        return (loss, outputs) if return_outputs else loss


class HalfOwnLoss(OwnLoss):
    part = 0.5


def test_a_loss_of_ones_own_does_not_switch_distillation_off(make) -> None:
    made = make(tiny.RECIPE + DISTIL, cls=OwnLoss)
    refused(made, "compute_loss gives a loss without the")
    trainer, callback = make(tiny.RECIPE + DISTIL, cls=HalfOwnLoss)
    trainer.train()
    assert len(callback.manager.events) == 3


class Stream(torch.utils.data.IterableDataset):
    """Samples without a length."""

    def __iter__(self):
        raise AssertionError("nothing is read")


def test_data_without_a_length_is_refused(make) -> None:
    trainer, callback = make(tiny.RECIPE, max_steps=20)
    trainer.train_dataset = Stream()
    refused((trainer, callback), "train_dataset=Stream has no length")


def way_of_a_step(folder: Path, out: Path, batch: int) -> float:
    """Make one step of plain descent on 8 samples; returns how far the head moves."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = datasets.Dataset.from_list(tiny.sentences(8))
    rows = rows.map(lambda row: tokenizer(row["sentence"]))
    rows = rows.remove_columns("sentence").rename_column("label", "labels")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = model.classifier.weight.detach().clone()
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(out),
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[RecipeCallback(f"{RANGE}1.0\n" + DISTIL, teacher="self")],
    )
    trainer.train()
    return float((model.classifier.weight.detach() - before).norm())


TWO = """
import os
import sys
from pathlib import Path
from tests.training.test_trainer_callback import way_of_a_step

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
way = way_of_a_step(folder / "model", folder / rank, 4)
(folder / f"rank{rank}").write_text(str(way))
"""


@pytest.mark.slow
def test_two_processes_distil_as_far_as_one(tmp_path) -> None:
    """The Trainer multiplies a loss that knows its number of items by the processes."""
    folder = tiny.save_model(tmp_path / "model")
    alone = way_of_a_step(folder, tmp_path / "alone", 8)
    both = [float(line) for (line,) in lines_of_ranks(TWO, tmp_path)]
    assert alone > 1e-3 and both == pytest.approx([alone] * 2, rel=1e-4)
