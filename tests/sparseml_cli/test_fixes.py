"""Each fix mends something: with it the command works, without it it fails."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.sparseml_cli.fixes import all_fixes

REPO = Path(__file__).parents[2]
# The fix, and the commands that fail without it or measure something else.
TESTED = {
    "package-versions": "test_package_versions",
    "local-metrics": "test_without_us_the_same_command_fails_for_want_of_its_metric",
    "gradient-samples": "test_gradient_samples",
    "open-qconfig": "test_open_qconfig",
    "shared-buffers": "test_shared_buffers",
    "safetensors-reload": "test_safetensors_reload",
    "saved-structure": "test_saved_structure",
    "tracing-export": "test_export",
    "checkpoint-loading": "test_checkpoint_loading",
    "resume-epoch": "test_resume",
    "early-stopping": "test_early_stopping",
}


def test_every_fix_has_a_test():
    assert set(TESTED) == {one.name for one in all_fixes()}
    here = Path(__file__).parent
    text = "".join(path.read_text("utf-8") for path in here.glob("test_*.py"))
    assert not [name for name in TESTED.values() if f"def {name}(" not in text]


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
def test_package_versions(words):
    command = [sys.executable, "-c", HIDDEN, *words, "sparseml.framework", "--help"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if words:
        assert done.returncode != 0
        assert "No module named 'pkg_resources'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert "fixes: package-versions" in done.stderr
        assert "usage" in done.stdout.lower()


@pytest.mark.runs("obs", "obs_without_samples", "ours_without_samples")
def test_gradient_samples(run):
    assert run("obs").figures()["eval_loss"] > 0.0
    for name in ("obs_without_samples", "ours_without_samples"):
        done = run(name)
        assert done.status != 0
        assert "unexpected keyword argument 'gradient_state'" in done.text


@pytest.mark.runs("quantized", "quantized_without_slots")
def test_open_qconfig(run):
    assert run("quantized").figures()["eval_loss"] > 0.0
    done = run("quantized_without_slots")
    assert done.status != 0
    assert "'QConfig' object has no attribute" in done.text


@pytest.mark.runs("quantized_with_copies", "quantized_without_copies")
def test_shared_buffers(run):
    assert run("quantized_with_copies").figures()["eval_loss"] > 0.0
    done = run("quantized_without_copies")
    assert done.status != 0
    assert "shared tensors" in done.text


@pytest.mark.runs("quantized", "quantized_again", "quantized_again_without")
def test_safetensors_reload(run):
    loss = run("quantized").figures()["eval_loss"]
    assert run("quantized_again").figures()["eval_loss"] == loss
    without = run("quantized_again_without")
    assert without.figures()["eval_loss"] != loss
    assert "could not find model weights" in without.text


@pytest.mark.runs("compound_again_without")
def test_saved_structure(run):
    # That it works with the fix, test_a_new_process_measures_the_same shows.
    done = run("compound_again_without")
    assert done.status == 2
    assert "keep=[1, 3] names layer 3 of a model with 2 layers" in done.text


@pytest.mark.runs("export", "export_without")
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
    without = run("export_without")
    assert without.status != 0
    assert "onnxscript" in without.text


@pytest.mark.runs("whole", "resumed_without_loading")
def test_checkpoint_loading(run):
    done = run("resumed_without_loading")
    assert done.status != 0
    assert "WeightsUnpickler error" in done.text


@pytest.mark.runs("whole", "resumed", "resumed_without_epoch")
def test_resume(run):
    """A resumed run ends with the bits of one that was not interrupted."""
    whole, resumed = run("whole"), run("resumed")
    assert resumed.status == 0, resumed.text[-3000:]
    assert _weights(whole.folder) == _weights(resumed.folder)
    assert _ranges(whole.folder) == _ranges(resumed.folder)
    state = json.loads((resumed.folder / "trainer_state.json").read_text("utf-8"))
    assert state["global_step"] == 16
    without = run("resumed_without_epoch")
    assert without.status == 0, without.text[-3000:]
    assert _weights(whole.folder) != _weights(without.folder)


def _weights(folder: Path) -> dict[str, bytes]:
    found = load_file(folder / "model.safetensors")
    assert len(found) > 10
    return {name: values.numpy().tobytes() for name, values in found.items()}


def _ranges(folder: Path) -> dict:
    return json.loads((folder / "quantization.json").read_text("utf-8"))["tensors"]


@pytest.mark.runs("stopped", "stopped_without")
def test_early_stopping(run):
    """The loss falls where the recipe wants it to rise: two evaluations end it."""
    for name, steps in (("stopped", 8), ("stopped_without", 16)):
        done = run(name)
        assert done.status == 0, done.text[-3000:]
        state = json.loads((done.folder / "trainer_state.json").read_text("utf-8"))
        assert state["global_step"] == steps
