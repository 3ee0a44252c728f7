"""From the ``params`` of a recipe to parameters of a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from obert_modifiers import core
from obert_modifiers.faults import Fault, FaultError, Rule

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.pruning.targets import Target

ALL = "__ALL__"
ALL_PRUNABLE = "__ALL_PRUNABLE__"
ALL_ENCODER = "__ALL_ENCODER__"
TOKENS = (ALL, ALL_PRUNABLE, ALL_ENCODER)


def unwrap(model: nn.Module) -> nn.Module:
    """Take the wrappers of distributed training and ``torch.compile`` off a model."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def is_linear(module: nn.Module) -> bool:
    """Tell linear layers, the transposed ones of GPT-2 (Conv1D) among them."""
    from torch import nn

    return isinstance(module, nn.Linear) or core.pruning.targets.is_conv1d(module)


def encoder_weights(model: nn.Module) -> list[str]:
    """Name the weights of the linear layers inside the encoder's repeated layers.

    Those are the weights that oBERT and GMP★ prune and report on (GMP★ section 2:
    "approximately 85M weights of encoder layers" of BERT-base): items of an
    ``nn.ModuleList``, so neither embeddings, nor pooler, nor the task's head.
    """
    from torch import nn

    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    inside = tuple(f"{name}." if name else "" for name in lists)
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if inside and name.startswith(inside) and is_linear(module)
    ]


def prunable_weights(model: nn.Module) -> list[str]:
    """Name what SparseML calls prunable: Linear, Conv, Conv1D, Embedding weights."""
    from torch import nn

    kinds = (nn.Embedding, nn.modules.conv._ConvNd)
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if is_linear(module) or isinstance(module, kinds)
    ]


def non_embedding_weights(model: nn.Module) -> list[str]:
    """Name the weights of all linear layers, the task's head among them.

    Those are oBERTa's "prunable" parameters (its Table 18, whose caption calls them
    "all non-embedding parameters": the counts there hold no biases and no
    normalisation weights). A layer that shares its weight with an embedding, such as
    the output of masked language modelling, is an embedding.
    """
    from torch import nn

    modules = dict(model.named_modules())
    embeddings = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    linear = {f"{name}.weight" for name, module in modules.items() if is_linear(module)}
    return [
        name
        for name, parameter in model.named_parameters()
        if name in linear and id(parameter) not in embeddings
    ]


def match_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Resolve names, ``re:`` patterns and tokens to parameter names."""
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = set(_match(model, names, pattern))
        if not found:
            text = re.sub(r"^re:|[\\^$*+?()\[\]]", "", pattern)
            near = difflib.get_close_matches(text, names, n=3, cutoff=0.0)
            expected = f"a name, a re: pattern or one of {', '.join(TOKENS)}"
            said = "matches no parameter", expected, f"nearest: {', '.join(near)}"
            raise FaultError(Fault.of(Rule.MODEL, "params", pattern, *said))
        chosen |= found
    return [name for name in names if name in chosen]


def match_weights(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Resolve what is to be masked, which has to be the weights that the model uses."""
    names = match_names(model, patterns)
    core.pruning.targets.check_no_adapters(model, names)
    return names


def _match(model: nn.Module, names: list[str], pattern: str) -> Iterable[str]:
    if pattern == ALL:
        return names
    if pattern == ALL_PRUNABLE:
        return prunable_weights(model)
    if pattern == ALL_ENCODER:
        return encoder_weights(model)
    if pattern.startswith("re:"):
        return [name for name in names if re.match(pattern[3:], name)]
    return [pattern] if pattern in names else []


def find_targets(model: nn.Module, names: Sequence[str]) -> list[Target]:
    """Look up parameters by their full names."""
    found, parameters = [], dict(model.named_parameters())
    for name in names:
        owner, _, own_name = name.rpartition(".")
        is_conv1d = core.pruning.targets.is_conv1d(model.get_submodule(owner))
        transposed = own_name == "weight" and is_conv1d
        found.append(core.pruning.targets.Target(name, parameters[name], transposed))
    return found
