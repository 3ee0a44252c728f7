"""Run a modifier of the table as SparseML's step wrapper does."""

import torch

from tests.modifiers.table import Row, make_batch, make_model, sample_loss

STEPS = 4  # optimizer steps in an epoch


def name_of(row: Row) -> str:
    """Tell the rows of the table apart."""
    return f"{row.cls.__name__} {row.label}".strip()


def drive(row, modifier, model, optimizer, steps, start=0, watch=None) -> None:
    """Run SparseML's lifecycle as its step wrapper does."""
    for step in range(start, steps):
        epoch = step / STEPS
        batch = make_batch(step)
        loss = sample_loss(model, batch).mean()
        loss = modifier.loss_update(
            loss,
            model,
            optimizer,
            epoch,
            STEPS,
            student_outputs=model(batch["tokens"]),
            student_inputs=batch,
        )
        loss.backward()
        if modifier.update_ready(epoch, STEPS):
            modifier.scheduled_update(model, optimizer, epoch, STEPS)
        modifier.optimizer_pre_step(model, optimizer, epoch, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        modifier.optimizer_post_step(model, optimizer, epoch, STEPS)
        if watch is not None:
            watch(step, modifier, model)


def start(row, seed=0):
    """Make a model, the modifier of a row on it, and an optimizer."""
    model = make_model(seed)
    modifier = row.cls(**row.keys)
    modifier.initialize(model, **row.extras)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return modifier, model, optimizer
