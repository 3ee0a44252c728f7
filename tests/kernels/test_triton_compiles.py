"""Triton's kernels compiled for a GPU that need not be there.

The interpreter accepts what the compiler refuses, and has no registers to run out of.
"""

import sys

import pytest

from tests.kernels.backends import HAS_TRITON, INTERPRETED

if sys.platform != "linux" or not HAS_TRITON or INTERPRETED:
    pytest.skip(
        "needs Linux and Triton, and a process in which it does not interpret",
        allow_module_level=True,
    )

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from obert_modifiers.kernels import _triton_fisher, _triton_greedy

# Triton's compiler rebuilds arguments with defaults without a field of the node, which
# Python 3.13 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:AnnAssign.__init__ missing:DeprecationWarning:triton.compiler"
)
TARGET = GPUTarget("cuda", 80, 32)
SHARED_BYTES = 48 * 1024  # of a program, without asking the device for more
POINTERS = {
    "numbers": "*fp64",
    "found": "*fp64",
    "failed": "*i32",
    "weights": "*fp64",
    "updated": "*fp64",
    "increases": "*fp64",
    "saliency": "*fp64",
    "order": "*i64",
    "groups": "*fp64",
    "subsets": "*i64",
    "solved": "*fp64",
    "values": "*bf16",
    **dict.fromkeys(("pruned", "eligible", "members", "mask"), "*u8"),
    **dict.fromkeys(("sums", "grads"), "*fp32"),
}
WIDE = {"WIDTH": 96, "PADDED": 128}
ACCUMULATE = (_triton_fisher._accumulate, {"WIDTH": 50, "TILE": 64, "DEPTH": 16})
ELIMINATE = _triton_greedy._eliminate
CASES = {
    "invert": (_triton_fisher._invert_groups, {**WIDE, "SIZE": 4}),
    "joint": (_triton_fisher._solve_joint, WIDE),
    "mask": (_triton_fisher._zero_unkept, {"STRIP": 1024}),
    "single": (
        ELIMINATE,
        {"WIDTH": 96, "SIZE": 1, "GROUPS": 128, "SLOTS": 1, "KEPT": 0, "OF": 1},
    ),
    "whole": (
        ELIMINATE,
        {"WIDTH": 48, "SIZE": 4, "GROUPS": 16, "SLOTS": 4, "KEPT": 0, "OF": 1},
    ),
    "subsets": (
        _triton_greedy._lowest,
        {"WIDTH": 4, "SIZE": 2, "SLOTS": 2, "TILE": 256},
    ),
    "solve": (_triton_greedy._solve, {"SIZE": 4, "SLOTS": 4, "TILE": 64}),
}
assert len(CASES) == 7


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch, tmp_path):
    """Compile anew, and leave no file behind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def _compiled(kernel, constants: dict[str, int], **pointers: str):
    known = {**POINTERS, **pointers}
    signature = {
        name: "constexpr" if name in constants else known.get(name, "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    wide = constants.get("PADDED") == 128 or constants.get("GROUPS") == 128
    return compile(source, target=TARGET, options={"num_warps": 16 if wide else 4})


@pytest.mark.parametrize("name", CASES)
def test_compiles_and_fits(name: str) -> None:
    found = _compiled(*CASES[name])
    assert found.asm["cubin"]
    assert found.metadata.shared <= SHARED_BYTES


@pytest.mark.parametrize("dtype", ["*fp32", "*fp64"])
def test_sums_are_added_without_tf32(dtype: str) -> None:
    text = _compiled(*ACCUMULATE, sums=dtype).asm["ptx"]
    assert "tf32" not in text
    assert "fma.rn.f" in text or "mma.sync" in text
