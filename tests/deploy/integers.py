"""What a graph with INT8 products computes, in integers, whatever the CPU.

Written from the definition of the operators: products of quantized values are summed
exactly, or as ``vpmaddubsw`` sums them, in pairs that stay within 16 bits. A kernel
that saturates is told apart from a wrong file by comparing with both.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

DOMAIN = "tests.integers"


def sums(left: np.ndarray, right: np.ndarray, saturating: bool) -> np.ndarray:
    """Sum u8 ``(..., K)`` times s8 or u8 ``(K, N)``; int64 ``(..., N)``.

    Only u8 times s8 saturates: that is the instruction's signature.
    """
    left, kind, right = left.astype(np.int64), right.dtype, right.astype(np.int64)
    if not saturating or kind != np.int8:
        return left @ right
    if left.shape[-1] % 2:
        left = np.concatenate([left, np.zeros_like(left[..., :1])], -1)
        right = np.concatenate([right, np.zeros_like(right[:1])])
    total = np.zeros((*left.shape[:-1], right.shape[1]), np.int64)
    for k in range(0, left.shape[-1], 2):
        pair = left[..., k : k + 2] @ right[k : k + 2]
        total += np.clip(pair, -(2**15), 2**15 - 1)
    return total


def _product(saturating: bool) -> type[OpRun]:
    class IntegerProduct(OpRun):
        op_domain = DOMAIN

        def _run(self, q, sq, zq, w, sw, zw, transB=None):
            w = w.T if transB else w
            # Zero points are taken out after the sums, as the engines do.
            zq, zw = np.int64(zq), zw.astype(np.int64)
            total = sums(q, w, saturating)
            total -= zq * w.astype(np.int64).sum(0)
            rows = (q.astype(np.int64) - zq).sum(-1, keepdims=True)
            total = total - rows * zw
            return ((total * (np.float64(sq) * sw)).astype(np.float32),)

    return IntegerProduct


class DequantizeLinear(OpRun):
    """The operator from opset 13 on; onnx 1.23's evaluator has it from 19 on only."""

    op_domain = ""

    def _run(self, x, scale, zero=None, axis=1, **later):
        assert not any(later.values())  # attributes of later opsets
        shape = [1] * x.ndim
        if scale.ndim:
            shape[axis] = scale.size
        wide = x.astype(np.float32)
        if zero is not None:
            wide -= zero.astype(np.float32).reshape(shape if zero.ndim else ())
        return (wide * scale.reshape(shape if scale.ndim else ()),)


def _in_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Read the quantized values of products in place of the dequantized ones."""
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {one.name for one in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        left, right = (makers.get(name) for name in node.input[:2])
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        if right is not None and right.op_type == "Transpose":
            right, turned = makers.get(right.input[0]), not turned
        sides = {one.op_type if one is not None else "" for one in (left, right)}
        if sides != {"DequantizeLinear"} or right.input[0] not in constants:
            continue
        assert len(node.input) == 2  # biases are sums of their own by default
        new = onnx.helper.make_node(
            "IntegerProduct",
            [*left.input, *right.input],
            list(node.output),
            domain=DOMAIN,
            transB=int(turned),
        )
        node.CopyFrom(new)
        count += 1
    assert count, "no product of integers"
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model


def evaluate(
    path: Path, batch: dict[str, np.ndarray], saturating: bool
) -> list[np.ndarray]:
    """Compute a graph of Q and DQ nodes with its products in integers."""
    model = _in_integers(onnx.load(path))
    session = ReferenceEvaluator(
        model, new_ops=[_product(saturating), DequantizeLinear]
    )
    return session.run(None, batch)
