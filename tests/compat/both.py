"""Drive one recipe in SparseML's own manager twice: on its modifiers and on ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from obert_modifiers.compat import replaced
from obert_modifiers.host import bases
from tests.modifiers.table import ENCODER, make_batch, make_model

STEPS = 4  # optimizer steps of an epoch


class ScriptedOptimizer(torch.optim.SGD):
    """Moves weights by noise that depends on the number of the step alone.

    SparseML's gradient sampler throws the gradients of the training step away, so that
    a real optimizer would do something else after its events than after ours.
    """

    def __init__(self, parameters: Any, size: float) -> None:
        super().__init__(parameters, lr=1.0)
        self.size, self.count = size, 0

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.count)
        self.count += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += self.size * noise.to(parameter.dtype)


def mean_loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels)


@dataclass
class Loader:
    """Batches as SparseML's ``grad_sampler`` wants them, the same for each event."""

    batches: int = 40
    asked: list[Any] = field(default_factory=list)

    def __call__(self, options: dict[str, Any] | None = None) -> Iterator[Any]:
        self.asked.append(options)
        size = (options or {}).get("batch_size", 8)
        for seed in range(self.batches):
            batch = make_batch(seed, size)
            yield [batch["tokens"]], {}, batch["labels"]

    @property
    def sampler(self) -> dict[str, Any]:
        # Not a generator, which SparseML would go on with at the next event.
        def build(options: dict[str, Any] | None = None) -> list[Any]:
            return list(self(options))

        return {"data_loader_builder": build, "loss_function": mean_loss}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def masks_of(modifier: Any) -> dict[str, torch.Tensor]:
    """Masks by full name of the parameter, SparseML's or ours."""
    masks = modifier.module_masks
    names = zip(masks.layer_names, masks.param_names, strict=True)
    found = zip(names, masks.param_masks, strict=True)
    return {".".join(name): mask != 0 for name, mask in found}


@dataclass
class Run:
    """What a run was like: masks after each step, and the last weights."""

    cls: type
    masks: list[dict[str, torch.Tensor]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def run(
    recipe: str,
    mode: str | None,
    steps: int,
    seed: int,
    noise: float,
    model: Any = None,
) -> Run:
    """Train with a recipe in SparseML's manager; its first modifier prunes.

    ``mode`` is None for SparseML's modifiers, or that of ours; ``noise`` is the size of
    the steps; ``model`` takes the place of the table's.
    """
    model = make_model(seed) if model is None else model
    with replaced(mode):
        manager = bases.ScheduledModifierManager.from_yaml(recipe)
    optimizer = ScriptedOptimizer(model.parameters(), noise)
    given = {"loggers": bases.silent_loggers(), "grad_sampler": Loader().sampler}
    wrapped = manager.modify(
        model, optimizer, steps_per_epoch=STEPS, epoch=0.0, **given
    )
    pruner = manager.pruning_modifiers[0]
    found = Run(type(pruner))
    for step in range(steps):
        batch = make_batch(1000 + step)
        mean_loss(model(batch["tokens"]), batch["labels"]).backward()
        wrapped.step()
        wrapped.zero_grad()
        found.masks.append({k: v.clone() for k, v in masks_of(pruner).items()})
    manager.finalize(model)
    found.weights = {k: v.detach().clone() for k, v in model.named_parameters()}
    return found


def compare(theirs: Run, ours: Run, atol: float) -> None:
    """Hold two runs against each other: masks exactly, weights to a tolerance."""
    assert len(theirs.masks) == len(ours.masks) > 0
    for step, (one, two) in enumerate(zip(theirs.masks, ours.masks, strict=True)):
        assert one.keys() == two.keys()
        for name in one:
            assert torch.equal(one[name], two[name]), (step, name)
    for name, values in theirs.weights.items():
        torch.testing.assert_close(values, ours.weights[name], atol=atol, rtol=0.0)


def pruned(found: Run) -> list[float]:
    """Sparsity of the encoder after each step at which it changed."""
    shares = [
        sum(int((~mask).sum()) for mask in masks.values())
        / sum(mask.numel() for mask in masks.values())
        for masks in found.masks
    ]
    return [b for a, b in zip([0.0, *shares], shares, strict=False) if a != b]


def differs(theirs: Run, ours: Run, atol: float) -> bool:
    with pytest.raises(AssertionError):
        compare(theirs, ours, atol)
    return True


assert len(ENCODER) == 4
