"""Sums of INT8 products that a CPU without VNNI cannot hold, and files without them.

There a kernel adds ``a[k] w[k] + a[k+1] w[k+1]``, two activations of 0 to 255 and two
weights, in 16 bits, and a sum beyond them stays at the largest number (``vpmaddubsw``).
The pairs are neighbours along the inputs, from an even place on: ONNX Runtime's and
oneDNN's kernels lay weights out in fours along the inputs. So ``255 (|w[k]| +
|w[k+1]|)``, of the weights of one sign, bounds what a pair can reach.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from onnx import NodeProto

from obert_modifiers.deploy.onnx.graph import (
    Graph,
    along,
    axis_of,
    is_transposed,
    products_of,
)

_LARGEST_ACTIVATION = 255
_SUMS = np.iinfo(np.int16)


def count_saturating(weight: np.ndarray) -> int:
    """Count the pairs of int8 ``(outputs, inputs)`` whose sums can leave 16 bits.

    An odd last input pairs with nothing.
    """
    wide = weight.astype(np.int32)
    if wide.shape[1] % 2:
        wide = np.pad(wide, ((0, 0), (0, 1)))
    pairs = wide.reshape(len(wide), -1, 2)  # (outputs, inputs / 2, 2)
    most = pairs.clip(min=0).sum(-1) * _LARGEST_ACTIVATION
    least = pairs.clip(max=0).sum(-1) * _LARGEST_ACTIVATION
    return int(((most > _SUMS.max) | (least < _SUMS.min)).sum())


def saturating_layers(graph: Graph) -> dict[str, int]:
    """Count the pairs of weights, by layer, that a CPU without VNNI cannot sum."""
    return {layer: count for layer, count, _ in _saturating(graph)}


def store_unsigned(graph: Graph) -> dict[str, int]:
    """Store the weights of saturating layers as UINT8 with zero point 128.

    ONNX Runtime multiplies u8 with u8 in 32 bits on every x86 CPU, with VNNI as fast as
    u8 with s8.
    """
    return _store(graph, _make_unsigned)


def store_in_floating_point(graph: Graph) -> dict[str, int]:
    """Store the weights of saturating layers as float32, rounded to their grid.

    For OpenVINO, which takes UINT8 weights apart in another way: it computes such a
    layer in floating point, from activations that are rounded as before.
    """
    return _store(graph, _make_floating_point)


def describe(layers: Mapping[str, int]) -> str:
    """Name the worst layers and the sums in them."""
    first = sorted(layers, key=lambda name: -layers[name])[:3]
    more = len(layers) - len(first)
    names = ", ".join(f"{name} ({layers[name]:,} sums)" for name in first)
    return f"{names}{f' and {more} more' if more else ''}"


def _saturating(graph: Graph) -> Iterator[tuple[str, int, NodeProto]]:
    """Find products of activations with int8 constants that can leave 16 bits.

    Yields the layer's name, how many pairs of its weights can, and the node that reads
    the constant: a DequantizeLinear or MatMulInteger node.
    """
    read = [
        (product.right.input[0], product.transposed, product.right)
        for product in products_of(graph, "MatMul", "Gemm")
    ]
    for node in graph.of_kind("MatMulInteger"):
        transposed = is_transposed(graph, node.input[1])
        name = graph.writer(node.input[1]).input[0] if transposed else node.input[1]
        read.append((name, transposed, node))
    for name, transposed, node in read:
        weight = graph.array(name) if name in graph.constants else None
        if weight is None or weight.dtype != np.int8 or weight.ndim != 2:
            continue
        if count := count_saturating(weight if transposed else weight.T):
            yield _layer(name), count, node


def _layer(constant: str) -> str:
    name = constant.removeprefix("model.").partition("_int8")[0]
    return name.removesuffix("_t").removesuffix(".weight")


def _store(graph: Graph, change: Callable[[Graph, NodeProto], None]) -> dict[str, int]:
    """Let `change` store the weight of each saturating layer in another form."""
    found = list(_saturating(graph))
    for _, _, reader in found:
        change(graph, reader)
    graph.write()
    return {layer: count for layer, count, _ in found}


def _make_floating_point(graph: Graph, right: NodeProto) -> None:
    """Put what a DequantizeLinear node computes in its place."""
    values, scale, zero = (graph.array(name) for name in right.input)
    scale, zero = along(axis_of(right), values, scale, zero)
    whole = (values.astype(np.int32) - zero).astype(np.float32) * scale
    name = right.input[0].replace("_int8", "_grid")
    graph.rename(right.output[0], graph.add(name, whole))


def _make_unsigned(graph: Graph, right: NodeProto) -> None:
    """Move the constant of a node, and all zero points it is read with, by 128."""
    name = right.input[0]
    if graph.array(name).dtype != np.int8:
        return  # another product shares it
    readers = []
    for node in graph.readers(name):
        gathers = node.op_type == "Gather"  # an embedding that a product shares
        readers += graph.readers(node.output[0]) if gathers else [node]
    graph.store(name, (graph.array(name).astype(np.int16) + 128).astype(np.uint8))
    for node in readers:
        zero = graph.array(node.input[2]).astype(np.int16) + 128
        node.input[2] = graph.add(f"{name}_zero_point", zero.astype(np.uint8))
