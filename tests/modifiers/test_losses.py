"""The Fisher of the task's loss, of the distillation's and of what is trained."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from obert_modifiers.core.distillation import distillation_loss
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.modifiers._losses import with_distillation
from obert_modifiers.modifiers.distillation import LogitDistillationModifier
from obert_modifiers.modifiers.second_order import FISHER_LOSSES
from obert_modifiers.recipe.manager import RecipeManager
from tests.modifiers.table import make_batch, make_model, make_source

HARDNESS, TEMPERATURE = 0.7, 3.0


def _source() -> GradientSource:
    return replace(
        make_source(),
        forward=lambda model, batch: model(batch["tokens"]),
        inputs=lambda batch: {"tokens": batch["tokens"]},
        output_loss=lambda outputs, batch: nn.functional.cross_entropy(
            outputs["logits"], batch["labels"], reduction="none"
        ),
    )


def _distiller(student, teacher, **keys) -> LogitDistillationModifier:
    made = LogitDistillationModifier(hardness=HARDNESS, temperature=TEMPERATURE, **keys)
    made.initialize(student, distillation_teacher=teacher)
    return made


def test_each_loss_is_what_it_says() -> None:
    student, teacher, batch = make_model(0), make_model(1), make_batch()
    distiller = _distiller(student, teacher)
    source = with_distillation(_source(), [distiller], lambda: 1.0)
    found = {
        name: source.of_loss(name).sample_losses(student, batch)
        for name in FISHER_LOSSES
    }
    ours, theirs = (m(batch["tokens"])["logits"] for m in (student, teacher))
    task = nn.functional.cross_entropy(ours, batch["labels"], reduction="none")
    kl = distillation_loss(ours, theirs, TEMPERATURE)
    torch.testing.assert_close(found["task"], task)
    torch.testing.assert_close(found["distillation"], kl)
    torch.testing.assert_close(found["train"], (1 - HARDNESS) * task + HARDNESS * kl)
    found["train"].sum().backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_labels_reach_the_distillation_of_tokens() -> None:
    """Inputs come without labels; the batch tells which tokens count."""

    class Tagger(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.table = nn.Embedding(11, 3)

        def forward(self, tokens):
            return {"logits": self.table(tokens)}

    student, teacher = Tagger(0), Tagger(1)
    tokens = torch.arange(10).reshape(2, 5)
    labels = torch.tensor([[-100, 1, 2, -100, -100], [0, -100, -100, -100, -100]])
    batch = {"tokens": tokens, "labels": labels}
    source = with_distillation(_source(), [_distiller(student, teacher)], lambda: 1.0)
    found = source.of_loss("distillation").sample_losses(student, batch)
    logits = (m(tokens)["logits"].reshape(-1, 3) for m in (student, teacher))
    kl = distillation_loss(*logits, TEMPERATURE).reshape(2, 5)
    torch.testing.assert_close(found, torch.stack([kl[0, 1:3].mean(), kl[1, 0]]))


def test_outside_of_the_distilled_epochs() -> None:
    student, batch = make_model(0), make_batch()
    distiller = _distiller(student, make_model(1), start_epoch=2.0)
    source = with_distillation(_source(), [distiller], lambda: 1.0)
    torch.testing.assert_close(
        source.of_loss("train").sample_losses(student, batch),
        source.sample_losses(student, batch),
    )
    with pytest.raises(ValueError, match="at epoch 1, where no modifier distils"):
        source.of_loss("distillation").sample_losses(student, batch)


def test_sources_that_cannot_give_it() -> None:
    distiller = _distiller(make_model(), make_model(1))
    for source in (
        with_distillation(make_source(), [distiller], lambda: 0.0),
        with_distillation(_source(), [], lambda: 0.0),
    ):
        assert source.of_loss("task") is source
        with pytest.raises(ValueError, match="fisher_loss=train is not available"):
            source.of_loss("train")


RECIPE = """\
pruning_modifiers:
  - !OBERTPruningModifier
      init_sparsity: 0.3
      final_sparsity: 0.6
      start_epoch: 0.0
      end_epoch: 1.0
      update_frequency: 0.5
      params: __ALL_ENCODER__
      num_grads: 24
      fisher_block_size: 10
      fisher_loss: {loss}
distillation_modifiers:
  - !LogitDistillationModifier
      hardness: 0.7
      temperature: 3.0
"""


def _pruned(loss: str) -> list[torch.Tensor]:
    model = make_model()
    manager = RecipeManager.from_recipe(RECIPE.format(loss=loss))
    manager.initialize(model, gradient_source=_source(), teacher=make_model(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    manager.update(model, optimizer, 0.0, 2)
    assert manager.sparsity() > 0.0
    return [p.detach().clone() for p in model.parameters()]


def test_recipes_choose_the_loss() -> None:
    task, distilled, mixed = (_pruned(loss) for loss in FISHER_LOSSES)
    again = _pruned("train")
    assert all(torch.equal(a, b) for a, b in zip(mixed, again, strict=True))
    for one, two in ((task, distilled), (task, mixed), (distilled, mixed)):
        assert not all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
