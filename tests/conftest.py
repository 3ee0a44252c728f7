"""Fixtures and settings for all tests; imports where only torch is installed."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

from obert_modifiers import host

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["NM_DISABLE_ANALYTICS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# Kernels of the sparse engine: compiled once, and not among the user's.
os.environ.setdefault(
    "OBERT_RUNTIME_CACHE", str(Path(tempfile.gettempdir()) / "obert_runtime_tests")
)

# Commands that a test runs in this process leave it the host that it has.
host.prefer = lambda name: None

REPO = Path(__file__).resolve().parent.parent

# A fixed number of threads fixes the order of sums, so a run repeats bit for bit.
torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same state of torch's generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Return the folder of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the data sets that are not shipped, or skip the test."""
    named = os.environ.get("OBERT_SHARED_DATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; name their folder in OBERT_SHARED_DATA")
    return folder


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what the CPU has, and how INT8 without VNNI was tested."""
    try:
        from obert_modifiers.cpu import host_cpu
    except ImportError:  # kernels and core alone
        return
    cpu = host_cpu()
    own = "its own kernels, which saturate" if cpu.saturates else "emulated"
    terminalreporter.write_line(
        f"CPU: {cpu.name}: {', '.join(cpu.instruction_sets)}. INT8 without VNNI: "
        f"OpenVINO's AVX2 kernels (ONEDNN_MAX_CPU_ISA), ONNX Runtime's {own} "
        "(tests/deploy/integers.py)"
    )
