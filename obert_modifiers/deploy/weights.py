"""The weights of any exported model: how many, which can be pruned, which are zero.

The prunable weights are those that the papers count: the matrices of linear layers
inside the encoder's numbered layers, without embeddings, pooler and head. They are told
by their names, or in a graph by the names of the nodes that multiply with them.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from obert_modifiers.deploy.artefact import LOADERS, ONNX, RUN, Artefact
from obert_modifiers.deploy.weight import Weight, in_a_layer


def weights_of(artefact: Artefact) -> list[Weight]:
    """Count the numbers of a model, tensor by tensor.

    Args:
        artefact: From `find_artefact`.

    Returns:
        Its weights; scales and zero points are none.

    Raises:
        ValueError: If a file is damaged or foreign.
    """  # noqa: DOC502  raised by what is called
    if artefact.kind == RUN:
        tensors = _tensors(artefact.files)
    elif artefact.kind in LOADERS:
        tensors = iter(LOADERS[artefact.kind](artefact.path).items())
    elif artefact.kind == ONNX:
        from obert_modifiers.deploy.onnx.weights import onnx_weights

        return onnx_weights(artefact.files[0])
    else:
        from obert_modifiers.deploy.formats.ir_weights import ir_weights

        return ir_weights(*artefact.files)
    return [
        Weight(name, one.numel(), int(torch.count_nonzero(one)), _prunable(name, one))
        for name, one in tensors
    ]


def _prunable(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 2 and name.endswith(".weight") and in_a_layer(name)


def _tensors(files: tuple[Path, ...]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
