"""Hold a modifier against what it will meet: the model, the data and the teacher."""

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from obert_modifiers.host.bases import Modifier, SparsificationTypes
from obert_modifiers.modifiers import (
    LayerDropModifier,
    OBERTPruningModifier,
    QATModifier,
)
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.recipe.clock import epoch_at

_TOKENS = ("__ALL__", "__ALL_PRUNABLE__")
_TEACHER_WORDS = ("self", "disable")


def model_faults(modifier: Modifier, model: nn.Module) -> Iterator[tuple[str, str]]:
    """Find names and patterns of a modifier that match nothing in a model.

    Args:
        modifier: SparseML's or ours; nothing is initialized.
        model: The model, wrapped for parallel training or not.

    Yields:
        The key of the recipe, and what is wrong.
    """
    if isinstance(modifier, LayerDropModifier):
        try:
            modifier.plan(model)
        except ValueError as error:
            yield "keep", str(error)
        return
    if hasattr(modifier, "resolve_targets"):
        yield from _own_faults(modifier, model)
        return
    if not getattr(modifier, "params_strict", True):
        return
    model = unwrap(model)
    for key, kind, names in (
        ("params", "parameter", _parameter_names(model)),
        ("layers", "layer", [name for name, _ in model.named_modules() if name]),
    ):
        for place, pattern in _patterns(modifier, key):
            if pattern.upper() in _TOKENS or _matches(pattern, names):
                continue
            near = ", ".join(_nearest_names(pattern, names))
            yield (
                place,
                f"{key}={pattern} matches no {kind}; expected a name in the model, a "
                f"re: pattern or one of {', '.join(_TOKENS)}; nearest: {near}",
            )


def data_faults(
    modifier: Modifier, num_train_samples: int
) -> Iterator[tuple[str, str]]:
    """Find a modifier that wants more gradients than there are samples.

    Args:
        modifier: SparseML's or ours.
        num_train_samples: Samples in the training set.

    Yields:
        The key of the recipe, and what is wrong.
    """
    second_order = isinstance(modifier, OBERTPruningModifier) or getattr(
        modifier, "needs_gradients", False
    )
    by_batch = getattr(modifier, "grad_granularity", "sample") == "batch"
    if not second_order or by_batch:  # batches may come again, as in SparseML
        return
    if modifier.num_grads > num_train_samples:
        yield (
            "num_grads",
            f"num_grads={modifier.num_grads} is more than the {num_train_samples} "
            "training samples; expected a sample for each gradient; lower num_grads "
            f"to {num_train_samples} or train on more samples",
        )


def step_faults(
    modifier: Modifier, steps_per_epoch: int, num_epochs: float | None
) -> Iterator[tuple[str, str]]:
    """Find what an epoch has too few steps for.

    That is a recurring learning rate whose cycle is less than two steps, as SparseML
    divides by one less, and what is due after the last step.

    Args:
        modifier: SparseML's or ours.
        steps_per_epoch: Optimizer steps of an epoch.
        num_epochs: Epochs of the recipe; None where it sets none.

    Yields:
        The key of the recipe, and what is wrong.
    """
    if num_epochs is not None:
        total = max(1, round(num_epochs * steps_per_epoch))
        last = epoch_at(total - 1, steps_per_epoch)
        yield from _after_the_last_step(modifier, steps_per_epoch, last)
    if getattr(modifier, "lr_func", "") != "cyclic_linear":
        return
    steps = modifier.cycle_epochs * steps_per_epoch
    if steps < 2.0:
        yield (
            "cycle_epochs",
            f"cycle_epochs={modifier.cycle_epochs:g} is {steps:g} of the "
            f"{steps_per_epoch} steps of an epoch; expected two steps at least, from "
            "init_lr to final_lr; raise it, or train on more or smaller batches",
        )


def _after_the_last_step(
    modifier: Any, steps_per_epoch: int, last: float
) -> Iterator[tuple[str, str]]:
    final = getattr(modifier, "final_sparsity", None)
    if final is not None and modifier.end_epoch > last:
        goals = ", ".join(f"{float(one):g}" for one in _goals(final))
        key, so = "end_epoch", f"final_sparsity={goals} is not reached"
    elif isinstance(modifier, QATModifier) and modifier.start_epoch > last:
        key, so = "start_epoch", "nothing is quantized"
    else:
        return
    yield (
        key,
        f"{key}={getattr(modifier, key):g} comes after the last optimizer step, at "
        f"epoch {last:g} with {steps_per_epoch} steps an epoch: {so}; expected a step "
        f"there or later; lower {key}, or train more epochs or smaller batches",
    )


def _goals(final: Any) -> Iterable[Any]:
    return final if isinstance(final, dict) else (final,)


def teacher_faults(modifier: Modifier, teacher: Any) -> Iterator[tuple[str, str]]:
    """Find a distillation modifier that has nothing to distil from.

    Args:
        modifier: SparseML's or ours.
        teacher: A model, ``"self"``, ``"disable"`` or None.

    Yields:
        The key of the recipe, empty as it is about the whole modifier, and what is
        wrong.
    """
    if SparsificationTypes.distillation not in modifier.sparsification_types:
        return
    if not (isinstance(teacher, nn.Module) or teacher in _TEACHER_WORDS):
        yield (
            "",
            f"teacher={teacher} cannot be distilled from; expected a model; pass one, "
            "as with --distill_teacher, or 'disable', or remove this modifier",
        )


def _own_faults(modifier: Any, model: nn.Module) -> Iterator[tuple[str, str]]:
    try:
        modifier.resolve_targets(model)
    except ValueError as error:
        place = str(error).partition("=")[0]
        if not hasattr(modifier, place):
            place = "params" if hasattr(modifier, "params") else ""
        if place == "params":
            place = next((place for place, _ in _patterns(modifier, place)), place)
        yield place, str(error)


def _parameter_names(model: nn.Module) -> list[str]:
    """Return names as SparseML forms them: each module's own, shared ones too."""
    return [
        f"{module_name}.{name}"
        for module_name, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    ]


def _patterns(modifier: Any, key: str) -> list[tuple[str, str]]:
    """Return a modifier's names and patterns, each after the key it stands under."""
    goals = getattr(modifier, "final_sparsity", None)
    if key == "params" and isinstance(goals, dict):
        return [("final_sparsity", one) for names in goals.values() for one in names]
    value = getattr(modifier, key, None)
    listed: Iterable[Any] = [value] if isinstance(value, str) else value or ()
    return [(key, one) for one in listed if isinstance(one, str)]


def _matches(pattern: str, names: list[str]) -> bool:
    if pattern.startswith("re:"):
        return any(re.match(pattern[len("re:") :], name) for name in names)
    return pattern in names


def _nearest_names(pattern: str, names: list[str]) -> list[str]:
    text = re.sub(r"^re:|[\\^$*+?()\[\]|]", "", pattern)
    return difflib.get_close_matches(text, names, n=3, cutoff=0.0)
