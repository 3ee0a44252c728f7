"""``obert export``: each format of one run, and what cannot be exported."""

import re
import shlex
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from obert_modifiers.cli import main
from obert_modifiers.cli.models import parse_shape
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy import checks
from obert_modifiers.deploy.artefact import names_of
from obert_modifiers.deploy.bench.cases import plan_cases
from obert_modifiers.deploy.run import load_run
from tests import tiny
from tests.deploy.models import make, save, sizes_of
from tests.test_readme import blocks, exporting_commands


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "runs" / "mine", Scheme())


@pytest.fixture
def dense(tmp_path):
    return save(tmp_path / "runs" / "dense", None)


def test_the_commands_of_the_readme(run, dense, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for words in exporting_commands():
        if "openvino" in words:
            pytest.importorskip("openvino")
    for words in exporting_commands():
        # The tiny model has 24 positions.
        words = [word.replace("32x128", "3x16") for word in words[1:]]
        if words[0] == "bench":
            words += ["--seq", "8", "--seconds", "0.02", "--rounds", "2"]
            words = ["1,3" if word == "1,32" else word for word in words]
        assert main(words) == 0, shlex.join(words)
    said = capsys.readouterr().out
    assert "17 weights as INT8" in said and "of PyTorch's largest" in said
    assert "only batch size 3 and sequence length 16" in said
    files = {path.name for path in (run / "export").iterdir()}
    graphs = {"onnxruntime.onnx", "deepsparse.onnx"}
    assert files == graphs | {"openvino.xml", "openvino.bin", "sparse"}
    # The README's code reads what its command wrote.
    code = next(one for one in blocks("python") if "SparseEncoder" in one)
    loaded: dict = {}
    exec(code, loaded)
    assert loaded["encoder"].texts(["the film"]).logits.shape == (1, 2)
    assert (tmp_path / "bench.png").is_file()


def test_a_dense_run_is_float32_and_can_be_packed(dense, tmp_path, capsys) -> None:
    assert main(["export", str(dense)]) == 0
    assert "all weights in float32" in capsys.readouterr().out
    out = tmp_path / "packed"
    assert main(["export", str(dense), "--format=safetensors", f"--out={out}"]) == 0
    assert out.is_dir()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--format", "torch24"], "has no 2:4 weight"),
        (["--format", "torch24", "--int8"], "int8=True has no meaning for format="),
        (["--format", "safetensors", "--shape", "2x8"], "with onnx, openvino; leave"),
        (["--format", "openvino", "--target", "deepsparse"], "leave out --target"),
        (["--format", "openvino", "--integer-bias"], "leave out --integer-bias"),
        (["--target", "openvino", "--integer-bias"], "for target=openvino, which adds"),
        (["--format", "safetensors", "--int8"], "was not trained with INT8"),
        (["--int8"], "was not trained with INT8: it has no quantization.json"),
        (["--format", "tflite"], "format=tflite is unknown; expected one of onnx"),
        (["--target", "tvm"], "target=tvm is unknown; expected one of onnxruntime"),
        (["--shape", "32"], "--shape=32 is no batch size and sequence length"),
        (["--shape", "0x4"], "--shape=0x4 is no batch size and sequence length"),
    ],
)
def test_what_cannot_be_is_refused(words, why, dense, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["export", str(dense), *words, "--out", str(out)]) == 2
    assert why in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "words", "why"),
    [
        ("m.onnx", ["--integer-bias"], "leave out --integer-bias, which is less exact"),
        ("m.xml", ["--format", "openvino"], "gives other outputs than the model"),
    ],
)
def test_a_file_that_computes_something_else_is_removed(
    name, words, why, run, tmp_path, capsys, monkeypatch
):
    if "openvino" in words:
        pytest.importorskip("openvino")
    monkeypatch.setattr(checks, "FEW_STEPS", -1.0)
    out = tmp_path / "new" / name
    assert main(["export", str(run), "--out", str(out), *words]) == 2
    assert why in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []  # both files of an IR


def test_models_are_told_apart_by_their_folders() -> None:
    paths = [Path("a/export/x.onnx"), Path("b/export/x.onnx"), Path("a/export/x.onnx")]
    assert names_of(paths) == ["a/export/x.onnx", "b/export/x.onnx", "a/export/x.onnx"]
    assert names_of([Path("a/x.onnx"), Path("a/y.onnx")]) == ["x.onnx", "y.onnx"]


def test_runs_are_exported_for_each_engine(dense, tmp_path) -> None:
    engines = ["onnxruntime", "deepsparse", "torch"]
    plan = plan_cases([dense], engines, [(2, 6), (1, 6)], tmp_path)
    assert [one.engine for one in plan.cases] == engines * 2
    assert {one.source for one in plan.cases} == {dense}
    fixed = [one.path for one in plan.cases if one.engine == "deepsparse"]
    sizes = [sizes_of(onnx.load(path).graph.input[0]) for path in fixed]
    assert sizes == [[2, 6], [1, 6]]


def test_an_engine_that_cannot_take_a_run_is_left_out(dense, tmp_path) -> None:
    text = (dense / "config.json").read_text()
    (dense / "config.json").write_text(text.replace('"gelu"', '"silu"'))
    engines = ["sparse", "onnxruntime"]
    plan = plan_cases([dense], engines, [(2, 6), (1, 6)], tmp_path)
    assert [one.engine for one in plan.cases] == ["onnxruntime"] * 2
    (note,) = plan.notes
    assert "activation=silu is not computed by the sparse engine" in note
    with pytest.raises(ValueError, match="runs on none of sparse: .*activation=silu"):
        plan_cases([dense], ["sparse"], [(2, 6)], tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("config.json", ".+", None, "has no config.json"),
        ("config.json", ".+", "{", "has a config.json that cannot be read"),
        ("config.json", "BertForSeq", "NoBertForSeq", "transformers does not have"),
        ("model.safetensors", ".+", "damaged", "cannot be loaded"),
    ],
)
def test_folders_that_are_no_runs(file, old, new, why, dense, capsys) -> None:
    path = dense / file
    if new is None:
        path.unlink()
    else:
        text = path.read_text(encoding="latin-1")
        path.write_text(re.sub(old, new, text, flags=re.DOTALL), encoding="latin-1")
    assert main(["export", str(dense)]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["sizes"], ["export", "--format", "safetensors"]], ids=" ".join
)
def test_damaged_weights_are_named(words, dense, capsys) -> None:
    (dense / "model.safetensors").write_text("damaged")
    assert main([words[0], str(dense), *words[1:]]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err


def test_weights_that_were_not_saved_are_not_made_up(dense, capsys) -> None:
    file = dense / "model.safetensors"
    saved = {n: t for n, t in load_file(file).items() if not n.startswith("classifier")}
    save_file(saved, file, {"format": "pt"})
    assert main(["export", str(dense)]) == 2
    assert "lacks classifier.bias, classifier.weight" in capsys.readouterr().err
    assert not (dense / "export").exists()


def test_a_pooler_that_was_not_saved_is_left_out(dense) -> None:
    model = make(BertModel, vocab_size=len(tiny.WORDS))
    model.pooler = None
    model.save_pretrained(dense)
    found = load_run(dense)
    assert found.model.pooler is None
    with torch.no_grad():
        assert found.model(**found.sample()).pooler_output is None


def test_a_folder_is_no_name_of_a_file(dense, capsys) -> None:
    assert main(["export", str(dense), "--out", str(dense)]) == 2
    assert f"write {dense / 'onnxruntime.onnx'}" in capsys.readouterr().err


def test_shapes() -> None:
    assert parse_shape(None) is None and parse_shape("32X128") == (32, 128)
