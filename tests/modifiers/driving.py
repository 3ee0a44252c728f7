"""Run modifiers of the table as SparseML's step wrapper does, recipes as our loop."""

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import Tensor, nn

from tests.modifiers.table import (
    ENCODER,
    PRUNERS,
    TABLE,
    Row,
    make_batch,
    make_model,
    sample_loss,
)

STEPS = 4  # optimizer steps in an epoch
# A small BERT, beside the sizes that a test chooses.
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def name_of(row: Row) -> str:
    """Tell the rows of the table apart."""
    return f"{row.cls.__name__} {row.label}".strip()


every = pytest.mark.parametrize("row", TABLE, ids=name_of)
pruners = pytest.mark.parametrize("row", PRUNERS, ids=name_of)


def recipe_of(row: Row, head: str = "modifiers:\n    - ") -> str:
    """A recipe with the modifier of a row, as SparseML writes it."""
    lines = str(row.cls(**row.keys)).splitlines()
    return head + "\n        ".join(line.strip() for line in lines)


def mixed_loss(modifier, model, optimizer, epoch, batch) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch before and after a modifier or SparseML's manager."""
    loss = sample_loss(model, batch).mean()
    given = {"student_outputs": model(batch["tokens"]), "student_inputs": batch}
    return loss, modifier.loss_update(loss, model, optimizer, epoch, STEPS, **given)


def drive(modifier, model, optimizer, steps, start=0, watch=None, loss=None):
    """Run SparseML's lifecycle as its step wrapper does."""
    for step in range(start, steps):
        where = (model, optimizer, step / STEPS, STEPS)
        if loss is None:
            found = mixed_loss(modifier, *where[:3], make_batch(step))[1]
        else:
            found = loss(step, *where)
        found.backward()
        if modifier.update_ready(*where[2:]):
            modifier.scheduled_update(*where)
        modifier.optimizer_pre_step(*where)
        optimizer.step()
        optimizer.zero_grad()
        modifier.optimizer_post_step(*where)
        if watch is not None:
            watch(step, modifier, model)


def start(row, seed=0):
    """Make a model, the modifier of a row on it, and an optimizer."""
    model = make_model(seed)
    modifier = row.cls(**row.keys)
    modifier.initialize(model, **row.extras)
    return modifier, model, torch.optim.Adam(model.parameters(), lr=1e-2)


def train(
    manager,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    first: int = 0,
    *,
    per_epoch: int = STEPS,
    loss: Callable[[int], Tensor] | None = None,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Train with our manager as the loop does, on the table's batches or a loss."""
    for step in range(first, steps):
        found = loss(step) if loss else sample_loss(model, make_batch(step)).mean()
        found.backward()
        where = (model, optimizer, step / per_epoch, per_epoch)
        manager.update(*where)
        manager.pre_step(*where)
        optimizer.step()
        manager.post_step(*where)
        optimizer.zero_grad()
        if watch is not None:
            watch(step)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that moves zeros: with momentum and decay."""
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def half_pruned(seed: int = 0) -> nn.Module:
    """The table's model with half of its encoder's weights zero."""
    model = make_model(seed)
    with torch.no_grad():
        for name in ENCODER:
            flat = model.get_parameter(name).view(-1)
            flat[flat.abs().argsort()[::2]] = 0.0
    return model


def zeros(model: nn.Module) -> list[Tensor]:
    """Where the encoder's weights are zero."""
    return [model.get_parameter(name) == 0 for name in ENCODER]


def count_zeros(model: nn.Module) -> int:
    return sum(int(mask.sum()) for mask in zeros(model))


def copied(values: Mapping[str, Tensor] | nn.Module) -> dict[str, Tensor]:
    """Copy the tensors of a state or a model."""
    items = values.state_dict() if isinstance(values, nn.Module) else values
    return {name: one.clone() for name, one in items.items()}


def same(one, two, names: Iterable[str] | None = None) -> bool:
    """Whether two models or states have the same bits, or those of some names."""
    one, two = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, two))
    kept = one.keys() if names is None else names
    return all(torch.equal(one[name], two[name]) for name in kept)
