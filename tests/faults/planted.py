"""Bugs of a resume, planted on purpose: the comparison has to find each."""

import torch

from obert_modifiers.core.quantization.fake_quant import Quantizer
from obert_modifiers.host import state as host_state
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._masks import ParameterMasks
from obert_modifiers.modifiers.averaging import WeightAveragingModifier
from obert_modifiers.recipe import manager
from obert_modifiers.training import loop, saving
from obert_modifiers.training.draws import SeededCollate


def _after_loading(change) -> None:
    original = GradualPruningModifier.load_state_dict

    def load(self, state, strict=True):
        original(self, state, strict)
        change(self)

    GradualPruningModifier.load_state_dict = load


def last_update_epoch_not_saved() -> None:
    _after_loading(lambda modifier: setattr(modifier, "_last_update_epoch", -1.0))


def schedule_starts_over() -> None:
    _after_loading(lambda modifier: setattr(modifier, "_started", False))


def draws_start_over() -> None:
    _after_loading(lambda modifier: setattr(modifier._engine, "draws", 0))


def reports_forgotten() -> None:
    _after_loading(lambda modifier: setattr(modifier, "_events", []))


def masks_forgotten() -> None:
    _after_loading(lambda modifier: setattr(modifier._masks, "enabled", False))
    ParameterMasks.replace = lambda self, masks: None
    saving.check_sparsity = lambda manager, before: None


def random_state_forgotten() -> None:
    loop.set_random_state_ = lambda state, device: None


def losses_forgotten() -> None:
    original = saving.resume_

    def resume(run, folder):
        random = original(run, folder)
        run.progress.losses.clear()
        return random

    loop.resume_ = resume


def average_forgotten() -> None:
    WeightAveragingModifier.load_own_state = lambda self, state: None


def epoch_starts_over() -> None:
    loop.skip_first_batches = lambda loader, count: loader


def optimizer_forgotten() -> None:
    original = saving.restore_

    def restore(run, folder, state):
        fresh = run.optimizer.state_dict()
        original(run, folder, state)
        run.optimizer.load_state_dict(fresh)

    saving.restore_ = restore


def ranges_forgotten() -> None:
    Quantizer.load_state_ = lambda self, state: None


def collate_counts_from_zero() -> None:
    SeededCollate.number = property(lambda self: self.made, _count)


def _count(self, value) -> None:
    self.made = 0 if value > getattr(self, "made", 0) + 1 else value


def _change_loaded(change) -> None:
    original = host_state.load_state

    def load(modifier, state):
        original(modifier, change(state) if "fields" in state else state)

    manager.load_state = load


def hosts_start_over() -> None:
    def forget(state):
        kept = ("_original", "_lr_set")
        fields = {k: v for k, v in state["fields"].items() if k in kept}
        return {**state, "fields": fields}

    _change_loaded(forget)


def host_masks_off() -> None:
    _change_loaded(lambda state: {**state, "enabled": False})
    saving.check_sparsity = lambda manager, before: None


def scaler_forgotten() -> None:
    loss_scaler()
    original = saving.restore_

    def restore(run, folder, state):
        original(run, folder, {**state, "scaler": None})

    saving.restore_ = restore


class _NearOverflow(torch.amp.GradScaler):
    def scale(self, outputs):
        return 4.0 * super().scale(outputs)  # infinite from a scale of 2^126 on


def loss_scaler() -> None:
    """No bug: losses are scaled as in fp16, so that steps are skipped now and then."""
    original = loop.make_accelerator

    def make(config):
        accelerator = original(config)
        accelerator.scaler = _NearOverflow(
            "cpu", init_scale=2.0**127, growth_factor=2.0, growth_interval=2
        )
        return accelerator

    loop.make_accelerator = make


# The run that shows each: recipe, and the step before which it is killed.
BUGS = {
    last_update_epoch_not_saved: ("obert", 6),
    schedule_starts_over: ("gmp", 6),
    draws_start_over: ("obert", 6),
    reports_forgotten: ("obert", 6),
    masks_forgotten: ("gmp", 11),
    average_forgotten: ("average", 14),
    random_state_forgotten: ("none", 6),
    losses_forgotten: ("none", 6),
    epoch_starts_over: ("none", 8),
    optimizer_forgotten: ("none", 6),
    ranges_forgotten: ("qat", 8),
    collate_counts_from_zero: ("none", 8),
    hosts_start_over: ("hosts", 9),
    host_masks_off: ("hosts", 9),
}
assert len(BUGS) == 14
