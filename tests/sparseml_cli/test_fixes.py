"""Each fix mends something: with it the command works, without it it fails."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.sparseml_cli.fixes import all_fixes
from tests.sparseml_cli.commands import COMMANDS
from tests.sparseml_cli.conftest import Done


def test_every_fix_is_left_out_by_a_command():
    text = " ".join(command.words for command in COMMANDS.values())
    # Without the others: test_package_versions, and the four tasks without us.
    left_out = {*re.findall(r"--without=(\S+)", text), "package-versions"}
    assert left_out | {"local-metrics"} == {one.name for one in all_fixes()}


# Hides pkg_resources, as setuptools 81 does.
HIDDEN = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name == "pkg_resources" else find(name, *rest)
)
from obert_modifiers.cli import main
sys.exit(main(["run", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("words", [[], ["--without=package-versions"]])
def test_package_versions(words, repo):
    command = [sys.executable, "-c", HIDDEN, *words, "sparseml.framework", "--help"]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True)
    if words:
        assert done.returncode != 0
        assert "No module named 'pkg_resources'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "fixes: package-versions" in done.stderr
        assert "usage" in done.stdout.lower()


@pytest.mark.runs("obs", "quantized", "quantized_with_copies")
@pytest.mark.parametrize("name", ["obs", "quantized", "quantized_with_copies"])
def test_with_its_fix_it_works(run, name):
    assert run(name).figures()["eval_loss"] > 0.0


@pytest.mark.runs("quantized", "quantized_again", "quantized_again_without")
def test_safetensors_reload(run):
    loss = run("quantized").figures()["eval_loss"]
    assert run("quantized_again").figures()["eval_loss"] == loss
    without = run("quantized_again_without")
    assert without.figures()["eval_loss"] != loss
    assert "could not find model weights" in without.text


@pytest.mark.runs("export")
def test_export(run):
    """SparseML's export of a model of QATModifier, in ONNX Runtime."""
    done = run("export")
    assert done.status == 0, done.text[-3000:]
    source = run("text_ours").folder
    path = source.parent / "deployment" / "model.onnx"
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert kinds["MatMulInteger"] == 2 * 6 + 2  # layers, pooler and classifier
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    assert load_quantization_(model, source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    texts = ["a great film with warm cast", "the plot is dull and cold"]
    shape = {"return_tensors": "pt", "padding": "max_length", "max_length": 16}
    inputs = tokenizer(texts, **shape)
    (found,) = session.run(None, {k: v.numpy() for k, v in inputs.items()})
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    # A value between two steps of a grid may fall to either side.
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def weights(done: Done) -> dict[str, bytes]:
    found = load_file(done.folder / "model.safetensors")
    assert len(found) > 10
    return {name: values.numpy().tobytes() for name, values in found.items()}


@pytest.mark.runs("whole", "resumed", "resumed_without_epoch")
def test_resume(run):
    """A resumed run ends with the bits of one that was not interrupted."""
    whole, resumed, without = map(run, ("whole", "resumed", "resumed_without_epoch"))
    assert resumed.steps() == 16
    assert weights(whole) == weights(resumed)
    ranges = [done.json("quantization.json")["tensors"] for done in (whole, resumed)]
    assert ranges[0] == ranges[1]
    assert without.steps() and weights(whole) != weights(without)


@pytest.mark.runs("stopped", "stopped_without")
def test_early_stopping(run):
    """The loss falls where the recipe wants it to rise: two evaluations end it."""
    assert run("stopped").steps() == 8
    assert run("stopped_without").steps() == 16
