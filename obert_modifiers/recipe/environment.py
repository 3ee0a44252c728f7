"""Validate a modifier against what it will meet: the model, data, steps and teacher."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from obert_modifiers.faults import Fault, FaultError, Rule
from obert_modifiers.host.bases import Modifier
from obert_modifiers.modifiers._targets import ALL, ALL_PRUNABLE, unwrap
from obert_modifiers.modifiers.layer_drop import LayerDropModifier
from obert_modifiers.modifiers.qat import QATModifier
from obert_modifiers.recipe.clock import epoch_at, steps_of
from obert_modifiers.recipe.counts import second_order
from obert_modifiers.recipe.placed import KINDS, goals_of, has_schedule, patterns_of

if TYPE_CHECKING:
    from torch import nn

_TOKENS = (ALL, ALL_PRUNABLE)  # those of SparseML
_TEACHER_WORDS = ("self", "disable")


def model_faults(modifier: Modifier, model: nn.Module) -> Iterator[Fault]:
    """Find names and patterns of a modifier that match nothing in a model."""
    if isinstance(modifier, LayerDropModifier):
        try:
            modifier.plan(model)
        except ValueError as error:
            yield Fault(Rule.MODEL, "keep", broken=str(error))
    elif hasattr(modifier, "resolve_targets"):
        yield from _own_faults(modifier, model)
    elif getattr(modifier, "params_strict", True):
        yield from _their_faults(modifier, unwrap(model))


def _own_faults(modifier: Any, model: nn.Module) -> Iterator[Fault]:
    try:
        modifier.resolve_targets(model)
        return
    except FaultError as error:
        (fault,) = error.faults
    except ValueError as error:
        key = "params" if hasattr(modifier, "params") else ""
        fault = Fault(Rule.MODEL, key, broken=str(error))
    goals = getattr(modifier, "final_sparsity", None)
    if fault.key == "params" and isinstance(goals, dict):  # it names them
        fault = Fault(fault.rule, "final_sparsity", broken=str(fault))
    yield fault


def _their_faults(modifier: Any, model: nn.Module) -> Iterator[Fault]:
    modules = list(model.named_modules())
    # As SparseML forms them: each module's own, shared ones too.
    parameters = [
        f"{module_name}.{name}"
        for module_name, module in modules
        for name, _ in module.named_parameters(recurse=False)
    ]
    layers = [name for name, _ in modules if name]
    for key, kind, names in (
        ("params", "parameter", parameters),
        ("layers", "layer", layers),
    ):
        for place, pattern in patterns_of(modifier, key):
            if pattern.upper() in _TOKENS or _matches(pattern, names):
                continue
            text = re.sub(r"^re:|[\\^$*+?()\[\]|]", "", pattern)
            near = difflib.get_close_matches(text, names, n=3, cutoff=0.0)
            wrong = f"{key}={pattern} matches no {kind}; expected a name in the model, "
            wrong += f"a re: pattern or one of {', '.join(_TOKENS)}; nearest: "
            yield Fault(Rule.MODEL, place, broken=wrong + ", ".join(near))


def _matches(pattern: str, names: list[str]) -> bool:
    if pattern.startswith("re:"):
        return any(re.match(pattern[len("re:") :], name) for name in names)
    return pattern in names


def data_faults(modifier: Any, num_train_samples: int) -> Iterator[Fault]:
    """Find a modifier that wants more gradients than there are samples."""
    config = second_order(modifier)
    # Batches may come again, as in SparseML.
    if config is None or config.grad_granularity == "batch":
        return
    if config.num_grads > num_train_samples:
        wrong = f"is more than the {num_train_samples} training samples; expected a "
        wrong += "sample for each gradient; lower num_grads to "
        wrong += f"{num_train_samples} or train on more samples"
        yield Fault(Rule.DATA, "num_grads", str(config.num_grads), wrong)


def step_faults(
    modifier: Any, steps_per_epoch: int, num_epochs: float | None
) -> Iterator[Fault]:
    """Find what an epoch has too few steps for.

    That is what is due after the last step, and a recurring learning rate whose cycle
    is less than two steps, as SparseML divides by one less.
    """
    if num_epochs is not None:
        last = epoch_at(steps_of(num_epochs, steps_per_epoch) - 1, steps_per_epoch)
        yield from _after_the_last_step(modifier, steps_per_epoch, last)
    if getattr(modifier, "lr_func", "") != "cyclic_linear":
        return
    steps = modifier.cycle_epochs * steps_per_epoch
    if steps < 2.0:
        wrong = f"is {steps:g} of the {steps_per_epoch} steps of an epoch; expected two"
        wrong += " steps at least, from init_lr to final_lr; raise it, or train on more"
        wrong += " or smaller batches"
        key = "cycle_epochs"
        yield Fault(Rule.STEPS, key, f"{modifier.cycle_epochs:g}", wrong)


def _after_the_last_step(
    modifier: Any, steps_per_epoch: int, last: float
) -> Iterator[Fault]:
    if has_schedule(modifier) and modifier.end_epoch > last:
        goals = ", ".join(f"{one:g}" for one in goals_of(modifier))
        key, so = "end_epoch", f"final_sparsity={goals} is not reached"
    elif isinstance(modifier, QATModifier) and modifier.start_epoch > last:
        key, so = "start_epoch", "nothing is quantized"
    elif modifier.start_epoch > last:
        key, so = "start_epoch", "it never begins"
    else:
        return
    wrong = f"comes after the last optimizer step, at epoch {last:g} with "
    wrong += f"{steps_per_epoch} steps an epoch: {so}; expected a step there or later; "
    wrong += f"lower {key}, or train more epochs or smaller batches"
    yield Fault(Rule.STEPS, key, f"{getattr(modifier, key):g}", wrong)


def output_faults(modifier: Modifier, output: str) -> Iterator[Fault]:
    """Find distillation of another output than the model gives; SparseML's: logits."""
    if KINDS.distillation not in modifier.sparsification_types:
        return
    distils = getattr(modifier, "distils", "logits")
    if distils != output:
        names = {"logits": "Logit", "sentence_embedding": "Embedding"}
        wrong = f"{type(modifier).__name__} distils {distils}, and the model gives "
        wrong += f"{output}; expected what the task trains; write "
        wrong += f"!{names[output]}DistillationModifier"
        yield Fault(Rule.TEACHER, broken=wrong)


def teacher_faults(modifier: Modifier, teacher: Any) -> Iterator[Fault]:
    """Find a distillation modifier without a model, ``"self"`` or ``"disable"``."""
    from torch import nn

    if teacher == "disable" and getattr(modifier, "fisher_loss", "") == "distillation":
        wrong = "has no teacher with 'disable'; expected one at every pruning event; "
        wrong += "name a teacher or write fisher_loss: train"
        yield Fault(Rule.NEEDS, "fisher_loss", "distillation", wrong)
    if KINDS.distillation not in modifier.sparsification_types:
        return
    if not (isinstance(teacher, nn.Module) or teacher in _TEACHER_WORDS):
        wrong = f"teacher={teacher} cannot be distilled from; expected a model; pass "
        wrong += "one, as with --distill_teacher, or 'disable', or remove this modifier"
        yield Fault(Rule.TEACHER, broken=wrong)
