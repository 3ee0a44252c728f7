"""Drop whole layers of an encoder: which ones, and how the model is left behind.

Models are recognised by their shape: the encoder is the one outermost ``ModuleList``
of equal modules, as many as the configuration (``model.config``) says where there is
one.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from obert_modifiers.core.options import CHOICES

_COUNT = "num_hidden_layers"
_COUNT_NAMES = (_COUNT, "n_layers", "n_layer", "num_layers")
_INDEX_NAMES = ("layer_idx", "layer_id", "layer_index", "layer_number")


@dataclass(frozen=True)
class DroppedLayers:
    """What was dropped: the list's name, layers before, indices that stayed.

    ``parameters`` are those of dropped layers that the model no longer has.
    """

    name: str
    total: int
    kept: tuple[int, ...]
    parameters: tuple[nn.Parameter, ...]


def choose_layers(
    total: int, keep: int | Sequence[int], choice: str | None = None
) -> tuple[int, ...]:
    """Choose the layers that stay.

    The papers keep the first, the middle and the last layer, or interleaved ones
    (oBERTa, section 3: "we select interleaved layers for the 6-layer model and the
    first, middle, and last layers for the 3-layer model"); oBERT (section 4.3,
    Appendix A.5) drops "all but 3 or 6" and does not say which. Of 12 layers the
    choices here are those of SparseML's own recipes for BERT with 3 and 6 layers:
    0, 6, 11 and 0, 2, 4, 6, 8, 11.

    ``keep`` has the number K of layers that stay of L, or their indices, from 0. Of the
    choices ``first_middle_last`` takes 0, L // 2 and L - 1, only for K = 3;
    ``interleaved`` i L // K for i < K, with the last of them moved to L - 1. None takes
    the first for three layers and the second for any other number, which also stands
    for ``measured`` before :func:`measure_layers` has chosen.

    Returns:
        Indices of the layers that stay, increasing.

    Raises:
        ValueError: If the model has no such layers, or all would stay.
    """
    listed = None if isinstance(keep, int) else list(keep)
    beyond = [i for i in listed or () if i >= total]
    if beyond:
        raise ValueError(
            f"keep={listed} names layer {beyond[0]} of a model with {total} layers; "
            f"expected indices from 0 to {total - 1}; correct it"
        )
    if (keep if isinstance(keep, int) else len(keep)) >= total:
        raise ValueError(
            f"keep={listed or keep} drops none of the model's {total} layers; expected "
            "fewer than it has; lower it or leave the modifier out"
        )
    if not isinstance(keep, int):
        return tuple(keep)
    choice = choice or (CHOICES[0] if keep == 3 else CHOICES[1])
    if choice == CHOICES[0]:
        return (0, total // 2, total - 1)
    return (*(i * total // keep for i in range(keep - 1)), total - 1)


def find_layers(model: nn.Module, least: int = 2) -> tuple[str, nn.ModuleList]:
    """Return the encoder's only list of layers with its full name, or raise."""
    count = getattr(_config(model), _COUNT, None)
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not isinstance(module, nn.ModuleList) or inside or len(module) < least:
            continue
        if count is not None and len(module) != count:
            continue
        if len({type(layer) for layer in module}) == 1:
            found[name] = module
    if len(found) != 1:
        what = f"{len(found)} lists ({', '.join(found)})" if found else "no list"
        raise ValueError(
            f"model={type(model).__name__} has {what} of layers; expected one "
            f"encoder, a ModuleList of {count or 'several'} layers that are built "
            "alike and share no weights; leave LayerDropModifier out"
        )
    return next(iter(found.items()))


def layers_left(model: nn.Module, names: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of the layers that stay where others are dropped by name."""
    place, layers = find_layers(model)
    known = [f"{place}.{index}" for index in range(len(layers))]
    for name in names:
        if name not in known:
            raise ValueError(
                f"drop={name} is not a layer of the encoder; expected names from "
                f"{known[0]} to {known[-1]}; correct it"
            )
    left = tuple(i for i, name in enumerate(known) if name not in names)
    if not left:
        raise ValueError(
            f"drop={list(names)} leaves none of the {len(layers)} layers; expected one "
            "to stay at least; shorten it"
        )
    return left


def plan_layers(
    model: nn.Module, keep: int | Sequence[int], choice: str | None = None
) -> tuple[int, ...]:
    """Choose the layers that stay by :func:`choose_layers`, and check that they can.

    Returns:
        Indices of the layers that stay.

    Raises:
        ValueError: If the model has no such layers, or a layer that stays is built
            otherwise than the one whose place it takes, or computes with its number.
    """
    name, layers = find_layers(model)
    kept = choose_layers(len(layers), keep, choice)
    for option, value in getattr(_config(model), "__dict__", {}).items():
        if value is True and any(index in option for index in _INDEX_NAMES):
            raise ValueError(
                f"model={type(model).__name__} has {option}, by which a layer computes "
                "with its own number; expected layers that compute the same in any "
                "place; leave LayerDropModifier out"
            )
    for place, index in enumerate(kept):
        here, there = _shapes(layers[place]), _shapes(layers[index])
        if here != there:
            differ = sorted(set(here.items()) ^ set(there.items()))[0][0]
            raise ValueError(
                f"keep={list(kept)} puts layer {index} of {name} in place of layer "
                f"{place}, whose parameters are others ({differ}); expected layers "
                f"that a saved model can be loaded into; keep layer {place} too"
            )
    return kept


def measure_layers(
    model: nn.Module, keep: int, loss: Callable[[nn.Module], float]
) -> tuple[int, ...]:
    """Choose the layers that stay by the loss without each of the others.

    One layer goes at a time, that without which the loss is the lowest, until K =
    ``keep`` of L stay; a tie, or losses that are no numbers, let the first go. The
    model is as before when this returns; (L + K + 1) (L - K) / 2 losses.

    Returns:
        Indices of the layers that stay, increasing.
    """
    kept = tuple(range(len(find_layers(model)[1])))
    while len(kept) > keep:
        trials = [kept[:place] + kept[place + 1 :] for place in range(len(kept))]
        found = [loss(_only(model, trial)) for trial in trials]
        worst = [math.inf if math.isnan(one) else one for one in found]
        kept = trials[worst.index(min(worst))]
    return kept


def _only(model: nn.Module, kept: Sequence[int]) -> nn.Module:
    """Return another model with some of the layers, which shares the tensors."""
    tensors = [*model.parameters(), *model.buffers()]
    other = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    drop_layers_(other, kept)
    return other


def drop_layers_(model: nn.Module, kept: Sequence[int]) -> DroppedLayers:
    """Return what was dropped: all other layers of a model, in place.

    The list of layers stays the same object. The layers that stay are numbered anew:
    by their place in the list, in their own ``layer_idx``, and in the numbers and
    lists of the configuration, of which the model gets a copy, so that another model
    with the same one keeps its layers. Buffers, hooks and weights stay as they are.
    """
    name, layers = find_layers(model)
    total = len(layers)
    before = list(model.parameters())
    for index in reversed(range(total)):
        if index not in kept:
            del layers[index]
    for place, index in enumerate(kept):
        _renumber(layers[place], index, place)
    _renew_configs(model, total, kept)
    owner = model.get_submodule(name.rpartition(".")[0])
    for attribute in _COUNT_NAMES:
        if type(vars(owner).get(attribute)) is int:
            setattr(owner, attribute, len(kept))
    after = {id(parameter) for parameter in model.parameters()}
    gone = tuple(parameter for parameter in before if id(parameter) not in after)
    return DroppedLayers(name, total, tuple(kept), gone)


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _shapes(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(values.shape) for name, values in layer.named_parameters()}


def _renumber(layer: nn.Module, old: int, new: int) -> None:
    for module in layer.modules():
        for attribute in _INDEX_NAMES:
            if vars(module).get(attribute) == old:
                setattr(module, attribute, new)


def _renew_configs(model: nn.Module, total: int, kept: Sequence[int]) -> None:
    renewed: dict[int, Any] = {}
    # A list, so that no configuration is freed and its id used again.
    found = [(m, vars(m)["config"]) for m in model.modules() if "config" in vars(m)]
    for module, config in found:
        if getattr(config, _COUNT, None) != total:
            continue
        if id(config) not in renewed:
            renewed[id(config)] = _shortened(config, total, kept)
        module.config = renewed[id(config)]


def _shortened(config: Any, total: int, kept: Sequence[int]) -> Any:
    config = copy.deepcopy(config)
    setattr(config, _COUNT, len(kept))
    for name, value in list(vars(config).items()):
        # One entry for each layer, such as ModernBERT's layer_types.
        if name.startswith("layer") and isinstance(value, list) and len(value) == total:
            setattr(config, name, [value[i] for i in kept])
    return config
