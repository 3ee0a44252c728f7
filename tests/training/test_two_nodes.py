"""Two nodes: two network namespaces that see each other over one cable alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import tiny

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
NAMES, CABLES = ("obert-node0", "obert-node1"), ("obert-c0", "obert-c1")
ADDRESSES = ("10.77.13.1", "10.77.13.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[None]:
    """Make the namespaces, or skip where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("needs the ip command of iproute2")
    try:
        for name in NAMES:
            ip("netns", "add", name)
        cables = ("link", "add", CABLES[0], "netns", NAMES[0], "type", "veth")
        ip(*cables, "peer", "name", CABLES[1], "netns", NAMES[1])
        for name, cable, address in zip(NAMES, CABLES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs network namespaces: {error.stderr.decode().strip()}")
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    flags = tiny.flags(tmp_path, 44) | {"per_device_train_batch_size": 4}
    words = ["-m", "obert_modifiers.cli", "train", "text_classification"]
    return [*words, *tiny.words_of(flags), "--use_cpu", "--do_train", "--do_eval"]


def run(commands: list[list[str]], **more: str) -> None:
    """Run them side by side; each has to end well."""
    children = [
        subprocess.Popen(
            words,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in commands
    ]
    try:
        for child in children:
            said, _ = child.communicate(timeout=240)
            assert child.returncode == 0, said[-3000:]
    finally:
        for child in children:
            child.kill()


@pytest.mark.slow
def test_two_nodes_end_as_two_processes_of_one(nodes, training, tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    local = [TORCHRUN, "--standalone", "--nproc_per_node", "2"]
    run([[*local, *training, "--output_dir", str(one)]])
    rendezvous = ["--nnodes", "2", "--nproc_per_node", "1"]
    rendezvous += ["--master_addr", ADDRESSES[0], "--master_port", "29555"]
    run([
        [
            *("ip", "netns", "exec", name, "env", f"GLOO_SOCKET_IFNAME={cable}"),
            *(TORCHRUN, *rendezvous, "--node_rank", str(number), *training),
            *("--output_dir", str(two)),
        ]
        for number, (name, cable) in enumerate(zip(NAMES, CABLES, strict=True))
    ])
    alone, apart = (load_file(f / "model.safetensors") for f in (one, two))
    assert alone.keys() == apart.keys()
    for name, weight in alone.items():
        assert weight.equal(apart[name]), name
