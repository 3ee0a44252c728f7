"""Texts without labels in the batches of a training: which, and with which loss."""

from dataclasses import replace

import pytest
import torch

from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import TrainConfig, train
from obert_modifiers.training.batches import EpochBatches, WithTexts, mean_loss
from obert_modifiers.training.draws import SeededCollate
from tests.modifiers.driving import same
from tests.modifiers.table import make_model
from tests.training.toy import make_task, records

RANGE = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}\n"
DISTIL = "  - !LogitDistillationModifier {{hardness: {h}, temperature: 1.0}}\n"
SIZE, SHARE = 8, 0.6  # 12 texts beside 8 samples


def with_texts(label: int = 0):
    others = make_task(0, 30).validation
    texts = [{**one, "labels": label} for one in others]
    return replace(make_task(), texts=texts, texts_share=SHARE)


def run(folder, task, hardness=0.7, **options):
    model = make_model().double()
    config = TrainConfig(
        folder,
        per_device_train_batch_size=SIZE,
        logging_steps=1,
        cpu=True,
        learning_rate=1e-2,
        **options,
    )
    manager = RecipeManager.from_recipe(RANGE + DISTIL.format(h=hardness))
    train(model, task, config, manager, teacher=make_model(9).double())
    return model, [r["loss"] for r in records(folder, "step")]


def first_batch(task, config_seed=42):
    sampler = EpochBatches([5] * 64, SIZE, seed=config_seed, by_length=True)
    indices = next(iter(sampler))
    collate = WithTexts(task.collate, task.texts, SHARE)
    return SeededCollate(collate, config_seed, 0)([task.train[i] for i in indices])


def expected(batch, labels_of_texts: bool) -> float:
    """The mean over all of a batch, a text's loss being the distillation's share."""
    student, teacher = make_model().double(), make_model(9).double()
    total = 0.0
    with torch.no_grad():
        for row, (tokens, label) in enumerate(
            zip(batch["tokens"], batch["labels"], strict=True)
        ):
            ours, theirs = (
                torch.log_softmax(one(tokens[None])["logits"][0], -1)
                for one in (student, teacher)
            )
            divergence = float((theirs.exp() * (theirs - ours)).sum())
            known = row < SIZE or labels_of_texts
            total += 0.3 * -float(ours[label]) * known + 0.7 * divergence
    return total / len(batch["tokens"])


def test_texts_have_the_loss_of_distillation_only(tmp_path) -> None:
    task = with_texts()
    batch = first_batch(task)
    assert batch["unlabelled"].tolist() == [False] * 8 + [True] * 12
    _, losses = run(tmp_path, task)
    assert losses[0] == pytest.approx(expected(batch, False), rel=1e-6)
    # Planted: the labels that only fill a place are learnt.
    assert losses[0] != pytest.approx(expected(batch, True), rel=1e-3)
    assert len(losses) == 8  # an epoch is one of the samples


def test_labels_of_texts_change_nothing_and_texts_do(tmp_path) -> None:
    one, _ = run(tmp_path / "a", with_texts(0))
    two, _ = run(tmp_path / "b", with_texts(1))
    none, _ = run(tmp_path / "c", make_task())
    assert same(one, two) and not same(one, none)


def test_each_batch_draws_texts_of_its_own() -> None:
    task = with_texts()
    rows = list(task.train)[:SIZE]

    def texts(rank=0, epoch=0, number=0):
        collate = WithTexts(task.collate, task.texts, SHARE)
        made = SeededCollate(collate, 3, rank, epoch, number)(rows)
        assert len(made["tokens"]) == 20
        return made["tokens"][SIZE:].tolist()

    drawn = [texts(), texts(rank=1), texts(epoch=1), texts(number=1)]
    assert texts() == drawn[0]
    assert all(one != other for i, one in enumerate(drawn) for other in drawn[:i])


def test_the_mean_is_over_all_rows_and_no_number_of_a_text_counts() -> None:
    losses = torch.tensor([1.0, 3.0, torch.nan, torch.inf])
    batch = {"unlabelled": torch.tensor([False, False, True, True])}
    assert mean_loss(losses, batch) == 1.0
    assert mean_loss(losses[:2], {}) == 2.0


@pytest.mark.parametrize("recipe", [None, RANGE, RANGE + DISTIL.format(h=0.0)])
def test_texts_without_a_teacher_are_refused(recipe, tmp_path) -> None:
    manager = None if recipe is None else RecipeManager.from_recipe(recipe)
    with pytest.raises(ValueError, match="texts without labels have no loss without"):
        train(make_model(), with_texts(), TrainConfig(tmp_path, cpu=True), manager)


def test_a_run_goes_on_with_the_texts_that_it_began_with(tmp_path) -> None:
    saving = {"save_strategy": "epoch"}
    run(tmp_path, with_texts(), **saving)
    other = replace(with_texts(), texts_share=0.5)
    with pytest.raises(ValueError, match="texts_without_labels=.* was .* when the"):
        run(tmp_path, other, **saving, resume_from_checkpoint="last")
