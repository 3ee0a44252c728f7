"""benchmarks/gpu.sh runs through, here with the CPU in the GPU's place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = (
    *("machine", "event", "kernels", "masks"),
    *("precision", "resume", "nccl", "two_four"),
)


@pytest.mark.slow
def test_every_part_runs_without_a_gpu(tmp_path) -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path)],
        env=os.environ | {"DEVICE": "cpu", "PYTHON": sys.executable, "TIMES": "4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    found = {
        name: json.loads((tmp_path / f"{name}.json").read_text()) for name in PARTS
    }
    assert len(found) == 8 and all(one["finished"] for one in found.values())
    assert found["event"]["ratio"] > 0 and found["event"]["sparsity"] == pytest.approx(
        0.8, abs=1e-3
    )
    assert found["resume"]["same_bits"] and found["nccl"]["same"]
    assert found["masks"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert found["precision"].keys() >= {"float32", "bf16"}


def test_a_part_that_fails_keeps_what_it_had_and_the_others(tmp_path) -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh"), str(tmp_path)],
        env=os.environ
        | {"DEVICE": "cuda", "PYTHON": sys.executable, "PARTS": "machine nccl"}
        | {"CUDA_VISIBLE_DEVICES": "", "TIMES": "4"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    for name in ("machine", "nccl"):
        kept = json.loads((tmp_path / f"{name}.json").read_text())
        assert not kept["finished"] and kept["error"] and kept["device"] == "cuda"
