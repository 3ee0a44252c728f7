"""Frozen parameters: they stay as they are, and move again afterwards."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from obert_modifiers.modifiers import FrozenParamsModifier
from obert_modifiers.recipe.manager import RecipeManager
from tests.hosts import ROOT, TORCHRUN, environment
from tests.modifiers.driving import STEPS, adamw, same
from tests.modifiers.table import make_batch, make_model, make_source, sample_loss

RECIPE = """
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: 4.0}}
  - !{name}
      params: ["re:.*embedding.*"]
      start_epoch: {start}
      end_epoch: {end}
      {keys}
"""
OURS = {"name": "FrozenParamsModifier", "keys": ""}
THEIRS = {"name": "TrainableParamsModifier", "keys": "trainable: false"}


def run(manager, steps=16, freeze=None):
    """Train with AdamW, decay and clipping.

    Returns:
        Whether the embedding moved in each step, and the norms that clipping saw.
    """
    model = make_model()
    if manager is not None:
        manager.initialize(model)
    optimizer = adamw(model)
    moved, norms = [], []
    for step in range(steps):
        sample_loss(model, make_batch(step)).mean().backward()
        if freeze is not None:
            freeze(step, model)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e-2)))
        before = model.embedding.weight.detach().clone()
        where = (model, optimizer, step / STEPS, STEPS)
        if manager is None:
            optimizer.step()
        else:
            manager.update(*where)
            manager.pre_step(*where)
            optimizer.step()
            manager.post_step(*where)
        optimizer.zero_grad()
        moved.append(not torch.equal(before, model.embedding.weight))
    if manager is not None:
        manager.finalize(model)
    assert not model.embedding.weight._backward_hooks
    return moved, norms, model


def no_gradient(step, model) -> None:
    """Freeze by hand: the optimizer passes over what has no gradient."""
    if 4 <= step < 8:
        model.embedding.weight.grad = None


def zero_gradient(step, model) -> None:
    if 4 <= step < 8:
        model.embedding.weight.grad.zero_()


def test_the_range_is_exact_and_nothing_else_changes() -> None:
    text = RECIPE.format(start=1.0, end=2.0, **OURS)
    moved, norms, model = run(RecipeManager.from_recipe(text))
    by_hand, norms_by_hand, reference = run(None, freeze=no_gradient)
    assert moved == [not 4 <= step < 8 for step in range(16)] == by_hand
    assert norms == norms_by_hand
    assert same(model, reference)


def test_a_gradient_of_zero_alone_would_let_momentum_and_decay_move_it() -> None:
    moved, _, _ = run(None, freeze=zero_gradient)
    assert all(moved)  # the negative control


def test_from_the_start_and_to_the_end() -> None:
    whole = RECIPE.format(start=0.0, end=-1.0, **OURS)
    assert not any(run(RecipeManager.from_recipe(whole))[0])
    first = RECIPE.format(start=-1.0, end=3.0, **OURS)
    assert run(RecipeManager.from_recipe(first))[0] == [False] * 12 + [True] * 4


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_a_range_that_ends_where_it_starts_freezes_nothing(at) -> None:
    empty = RecipeManager.from_recipe(RECIPE.format(start=at, end=at, **OURS))
    moved, norms, model = run(empty)
    _, expected, reference = run(None)
    assert all(moved) and norms == expected and same(model, reference)


@pytest.mark.parametrize("at", [0, 6, 7, 10])
def test_its_state_comes_back(at) -> None:
    model = make_model()
    modifier, again = (
        FrozenParamsModifier("re:.*embedding.*", 1.0, 2.0) for _ in range(2)
    )
    modifier.initialize(model, epoch=at / STEPS)
    fresh = make_model()
    again.initialize(fresh, epoch=1.5)  # frozen, whatever the state says
    again.load_state_dict(modifier.state_dict())
    for one in (model, fresh):
        sample_loss(one, make_batch()).mean().backward()
    assert torch.equal(model.embedding.weight.grad, fresh.embedding.weight.grad)
    assert bool(model.embedding.weight.grad.any()) == (at not in (6, 7))
    with pytest.raises(RuntimeError, match="uninitialized modifier"):
        FrozenParamsModifier("x").load_state_dict({"next_epoch": 1.0})


def test_names_that_the_model_does_not_have() -> None:
    modifier = FrozenParamsModifier("re:.*embeddings")
    with pytest.raises(ValueError, match="nearest: embedding.weight"):
        modifier.initialize(make_model())


PRUNED = """modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 4.0}
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.5
      start_epoch: 0.0
      end_epoch: 0.0
      update_frequency: 1.0
      num_grads: 24
      fisher_block_size: 8
      params: [embedding.weight, layers.0.0.weight]
"""


def test_the_fisher_is_that_of_gradients_that_are_not_held() -> None:
    """Before the first step both models are the same, frozen or not."""

    def counts(recipe: str) -> list[int]:
        manager, model = RecipeManager.from_recipe(recipe), make_model()
        manager.initialize(model, gradient_source=make_source())
        manager.update(model, adamw(model), 0.0, 4)
        sample_loss(model, make_batch()).mean().backward()
        assert bool(model.embedding.weight.grad.any()) is ("Frozen" not in recipe)
        return [layer.pruned for layer in manager.events[0].layers]

    frozen = "  - !FrozenParamsModifier\n      params: [embedding.weight]\n"
    assert counts(PRUNED + frozen) == counts(PRUNED)


TWO_RANKS = """
import sys
import torch
import torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from obert_modifiers.recipe.manager import RecipeManager
from tests.modifiers import test_frozen as t

def differ(recipe, before):
    model, manager = t.make_model(), RecipeManager.from_recipe(recipe)
    if before:
        manager.initialize(model)
    wrapped = DistributedDataParallel(model)
    if not before:
        manager.initialize(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    start = model.embedding.weight.detach().clone()
    for step in range(8):
        batch = t.make_batch(10 * step + dist.get_rank())
        outputs = wrapped(batch["tokens"])
        t.nn.functional.cross_entropy(outputs["logits"], batch["labels"]).backward()
        where = (model, optimizer, step / t.STEPS, t.STEPS)
        manager.update(*where)
        manager.pre_step(*where)
        optimizer.step()
        manager.post_step(*where)
        optimizer.zero_grad()
        if step < 4:
            assert torch.equal(start, model.embedding.weight)
    assert not torch.equal(start, model.embedding.weight)
    mean = model.embedding.weight.detach().clone()
    dist.all_reduce(mean)
    return not torch.equal(mean / 2, model.embedding.weight.detach())

dist.init_process_group("gloo")
span = {"start": 0.0, "end": 1.0}
ours, theirs = (t.RECIPE.format(**span, **keys) for keys in (t.OURS, t.THEIRS))
found = [differ(ours, True), differ(ours, False), differ(theirs, True)]
try:
    differ(theirs, False)
except RuntimeError as error:
    found.append("finished reduction" in str(error))
Path(sys.argv[1], f"rank{dist.get_rank()}").write_text(str(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_stay_equal_where_sparsemls_modifier_lets_them_part(
    tmp_path,
) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    command = [sys.executable, *TORCHRUN, "--nproc_per_node=2"]
    command += [str(script), str(tmp_path)]
    done = subprocess.run(
        command,
        env=environment(OMP_NUM_THREADS="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = (tmp_path / f"rank{rank}").read_text()
        assert found == "[False, False, True, True]"
