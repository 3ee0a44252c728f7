"""Which backend is chosen, and what is said where one cannot run."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from obert_modifiers.kernels import _backend

CPU = torch.zeros(1)
CUDA = SimpleNamespace(device=torch.device("cuda:0"))  # all that the choice looks at
ALL = ("torch", "numba", "triton")
INSTALLED = {"numba": (0, 68), "triton": (3, 7)}


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch):
    monkeypatch.setattr(
        _backend, "_version", lambda package: INSTALLED.get(package, ())
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize(
    ("tensor", "among", "expected"),
    [
        (CPU, ALL, "numba"),
        (CUDA, ALL, "triton"),
        (CPU, ("torch", "triton"), "torch"),
        (CUDA, ("torch", "numba"), "torch"),
        (torch.zeros(1, device="meta"), ALL, "torch"),
    ],
)
def test_auto_goes_by_device_and_by_what_there_is(tensor, among, expected) -> None:
    assert _backend.choose_backend("auto", tensor, among=among) == expected


@pytest.mark.parametrize("tensor", [CPU, CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("versions", [{}, {"numba": (0, 58), "triton": (3, 4)}])
def test_auto_is_torch_where_nothing_fit_is_installed(
    tensor, versions, monkeypatch
) -> None:
    monkeypatch.setattr(_backend, "_version", lambda package: versions.get(package, ()))
    assert _backend.choose_backend("auto", tensor) == "torch"


@pytest.mark.parametrize(
    ("backend", "tensor", "among", "installed", "message"),
    [
        (
            "cuda",
            CPU,
            ALL,
            True,
            "=cuda is unknown; expected auto, torch, numba or tri",
        ),
        (
            "numba",
            CUDA,
            ALL,
            True,
            "=numba cannot run on cuda:0; expected a CPU tensor",
        ),
        ("triton", CPU, ALL, True, "=triton cannot run on cpu; expected a CUDA tensor"),
        (
            "numba",
            CPU,
            ("torch", "triton"),
            True,
            "no such kernel; expected auto, torch",
        ),
        ("numba", CPU, ALL, False, "not installed; expected the .* numba>="),
        ("triton", CUDA, ALL, False, "not installed; expected the .* triton>="),
    ],
)
def test_a_backend_that_cannot_run_is_an_error(
    backend, tensor, among, installed, message, monkeypatch
) -> None:
    if not installed:
        monkeypatch.setattr(_backend, "_version", lambda package: ())
    with pytest.raises(ValueError, match=message):
        _backend.choose_backend(backend, tensor, among=among)


def test_the_interpreter_is_triton_on_a_cpu_and_never_chosen_by_itself(
    monkeypatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _backend.choose_backend("triton", CPU) == "triton"
    assert _backend.choose_backend("auto", CPU) == "numba"


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(("tile", "expected"), [(128, "triton"), (256, "torch")])
def test_a_block_too_wide_for_the_chip_takes_torch(backend, tile, expected) -> None:
    assert _backend.choose_backend(backend, CUDA, tile=tile) == expected


def test_padded_width() -> None:
    widths = {1: 1, 2: 2, 3: 4, 48: 64, 50: 64, 96: 128, 128: 128, 129: 256}
    assert {width: _backend.padded_width(width) for width in widths} == widths


def test_compiled_loops_leave_torchs_threads_alone() -> None:
    """Numba sets the number of threads of an OpenMP runtime that both may share."""
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from obert_modifiers.kernels import inverse_blocks\n"
        "inverse_blocks(torch.zeros(3, 4, 4).double(), 1.0, 0.1, backend='numba')\n"
        "print(torch.get_num_threads())"
    )
    for count in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=os.environ | {"NUMBA_NUM_THREADS": count},
        )
        assert done.stdout == "2\n", done.stderr
