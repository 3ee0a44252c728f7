"""The example format and engine of CONTRIBUTING.md: a file and a line each."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from transformers import AutoModelForSequenceClassification

from tests import tiny

# A heading, its file, its line's file.
EXAMPLES = {
    "A new format": ("deploy/formats/npz.py", "deploy/formats/__init__.py"),
    "A new engine": ("deploy/engines/onnx.py", "deploy/engines/__init__.py"),
}
COMMANDS = """
import sys
from obert_modifiers.cli import main

run, data = sys.argv[1:]
for words in (
    ["export", run, "--format", "npz"],
    ["export", run, "--target", "onnx"],
    ["sizes", run, run + "/export/npz", "--json", "sizes.json"],
    ["evaluate", run, "--json", "run.json", *data.split()],
    ["evaluate", run + "/export/npz", "--json", "npz.json", *data.split()],
    ["evaluate", run + "/export/onnx.onnx", "--engine", "onnx", "--json", "onnx.json"]
    + data.split(),
    ["bench", run + "/export/npz", "--engine", "onnx,torch"]
    + ["--batch", "2", "--seq", "8", "--seconds", "0.02", "--rounds", "1"]
    + ["--json", "bench.json", "--plot", "bench.png"],
):
    assert main(words) == 0, words
main(["doctor"])
main(["export", "--help"])
main(["evaluate", "--help"])
"""


@pytest.fixture
def package(repo, tmp_path):
    """A copy of the package with both examples added."""
    text = (repo / "CONTRIBUTING.md").read_text(encoding="utf-8")
    copy = tmp_path / "copy" / "obert_modifiers"
    shutil.copytree(repo / "obert_modifiers", copy)
    for heading, (file, registry) in EXAMPLES.items():
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        code, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        assert f"`obert_modifiers/{file}`" in section
        assert f"`obert_modifiers/{registry}`" in section and line.count("\n") == 1
        (copy / file).write_text(code, encoding="utf-8")
        whole = (copy / registry).read_text(encoding="utf-8")
        (copy / registry).write_text(whole.replace("    },\n", f"{line}    }},\n"))
    return copy


def test_what_is_added_is_in_every_command(package, tmp_path):
    run = tiny.save_model(tmp_path / "run")
    AutoModelForSequenceClassification.from_pretrained(run).save_pretrained(run)
    data = tiny.write_rows(tmp_path / "data.json", tiny.sentences(8))
    words = f"--validation_file {data} --cache_dir {tmp_path / 'cache'}"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMMANDS, str(run), words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = ("sizes", "run", "npz", "onnx", "bench")
    read = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    assert [row["kind"] for row in read["sizes"]] == ["run", "npz"]
    assert read["sizes"][0]["parameters"] == read["sizes"][1]["parameters"]
    assert read["npz"]["loss"] == pytest.approx(read["run"]["loss"], rel=1e-9)
    assert read["onnx"]["engine"] == "onnx"
    assert read["onnx"]["accuracy"] == read["run"]["accuracy"]
    timed = [(row["model"], row["engine"]) for row in read["bench"]["results"]]
    assert timed == [("npz", "onnx"), ("npz", "torch")]
    assert "onnx                 slow everywhere" in done.stdout
    assert "One of onnx, openvino, safetensors, sparse, torch24, npz" in " ".join(
        re.sub("[│]", " ", done.stdout).split()
    )
