"""A manager that is deleted without having been finalized writes no weight."""

import gc

import pytest
import torch
from torch import nn

from obert_modifiers.host.bases import ScheduledModifierManager
from obert_modifiers.modifiers import GMPStarPruningModifier


def started() -> tuple[nn.Module, ScheduledModifierManager]:
    """Return a model that was pruned, with a pruned weight that has grown back."""
    model = nn.Sequential(nn.Linear(8, 8))
    modifier = GMPStarPruningModifier(
        init_sparsity=0.5,
        final_sparsity=0.5,
        start_epoch=0.0,
        end_epoch=1.0,
        update_frequency=0.5,
        params=["re:.*weight"],
    )
    manager = ScheduledModifierManager([modifier])
    manager.initialize(model)
    manager.update(model, None, 0.0, 4)
    assert int((model[0].weight == 0).sum()) == 32
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    return model, manager


def test_a_deleted_manager_writes_nothing() -> None:
    model, manager = started()
    del manager
    gc.collect()
    assert int((model[0].weight == 0).sum()) == 0


@pytest.mark.parametrize(("given", "pruned"), [(True, 32), (False, 0)])
def test_finalize_applies_the_masks_to_the_model_that_it_is_given(given, pruned):
    model, manager = started()
    manager.finalize(model if given else None)
    assert int((model[0].weight == 0).sum()) == pruned
