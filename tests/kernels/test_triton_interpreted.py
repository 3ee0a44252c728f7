"""Triton's kernels without a GPU: in its interpreter, in a process of its own.

Triton decides when it is imported whether its functions are interpreted or compiled,
for the whole process, from an environment variable that must be set before. A process
of its own is the only place where it is sure that nothing imported Triton earlier, and
where the setting reaches no other test. The oracles are those of the other backends:
their files run again there, with ``-k triton``.
"""

import os
import re
import subprocess
import sys

import pytest

from tests.kernels.backends import HAS_TRITON

FILES = (
    "test_fisher.py",
    "test_greedy.py",
    "test_groups.py",
    "test_masks.py",
    "test_triton_cases.py",
)
assert len(FILES) == 5
# What older Triton's interpreter does with the bounds of a loop.
IGNORED = "ignore:Conversion of an array with ndim:DeprecationWarning"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton runs on Linux alone")
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_the_kernels_in_the_interpreter(repo) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-W", IGNORED, "-k", "triton"]
        + [f"tests/kernels/{name}" for name in FILES],
        cwd=repo,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.strip().splitlines()[-1]
    assert "skipped" not in summary, done.stdout
    assert int(re.search(r"(\d+) passed", summary).group(1)) >= 100
