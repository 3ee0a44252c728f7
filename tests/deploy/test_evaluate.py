"""`obert evaluate`: each format has the figures of the run; errors say what to do."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizerFast,
)

from obert_modifiers import cli
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.engines.engine import Opened
from obert_modifiers.deploy.evaluate import Request, evaluate_file
from obert_modifiers.deploy.formats.safetensors_packed import export_packed
from obert_modifiers.deploy.formats.torch24 import export_torch24
from obert_modifiers.deploy.graph_model import GraphModel, open_graph
from obert_modifiers.deploy.onnx import export_onnx
from obert_modifiers.deploy.run_folder import copy_along
from obert_modifiers.tasks import TASKS
from obert_modifiers.tasks import main as run_task
from obert_modifiers.tasks.sentences.model import EmbeddingModel
from tests import questions, tiny
from tests.deploy.models import pruned_, quantized_, save_quantized

MODELS = {
    "text_classification": AutoModelForSequenceClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "token_classification": AutoModelForTokenClassification,
    "sentence_embedding": EmbeddingModel,
    "masked_language_modeling": AutoModelForMaskedLM,
}
assert MODELS.keys() == TASKS.keys()


def write_data(task: str, folder: Path) -> Path:
    if task == "question_answering":
        return questions.write_document(folder / "data.json", questions.rows(24))
    rows = tiny.sentences(24)
    if task == "sentence_embedding":
        pairs = zip(rows, tiny.sentences(24, 1), strict=True)
        rows = [
            {"sentence1": a["sentence"], "sentence2": b["sentence"], "score": i / 24}
            for i, (a, b) in enumerate(pairs)
        ]
    if task == "token_classification":
        sentences = [row["sentence"].split() for row in rows]
        tags = {word: "B-X" for word in tiny.GOOD}
        rows = [
            {"tokens": words, "tags": [tags.get(word, "O") for word in words]}
            for words in sentences
        ]
    return tiny.write_rows(folder / "data.json", rows)


def sample_of(run: Path):
    tokenizer = BertTokenizerFast.from_pretrained(run)
    return tokenizer(["the film", "is it fine"], return_tensors="pt", padding=True)


def data_words(data: Path, folder: Path) -> tuple[str, ...]:
    return ("--validation_file", str(data), "--cache_dir", str(folder / "cache"))


@pytest.fixture(scope="module", params=TASKS)
def made(request, tmp_path_factory):
    """A tiny quantized 2:4 model of each task with its data."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.save_model(folder / "base", hidden_size=64, intermediate_size=128)
    more = {}
    if request.param == "token_classification":
        more = {"id2label": {0: "B-X", 1: "O"}, "label2id": {"B-X": 0, "O": 1}}
    torch.manual_seed(0)
    model = pruned_(MODELS[request.param].from_pretrained(base, **more))
    tokenizer = BertTokenizerFast.from_pretrained(base)
    texts = [row["sentence"] for row in tiny.sentences(16)]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    run = save_quantized(quantized_(model, Scheme(), *[batch] * 3), folder / "run")
    tokenizer.save_pretrained(run)
    words = data_words(write_data(request.param, folder), folder)
    if request.param == "question_answering":
        words += ("--max_seq_length", "32", "--doc_stride", "8")
    return SimpleNamespace(task=request.param, run=run, words=words, model=model)


def test_every_format_has_the_figures_of_the_run(made, tmp_path):
    flags = ["--model_name_or_path", str(made.run), *made.words, "--do_eval"]
    flags += ["--output_dir", str(tmp_path / "eval"), "--use_cpu"]
    expected = run_task(made.task, flags)
    export_packed(made.run, tmp_path / "packed")
    export_torch24(made.run, tmp_path / "24")
    export_onnx(made.model, sample_of(made.run), tmp_path / "onnx" / "model.onnx")
    # Half precision rounds biases and norms, and ONNX Runtime sums in another order:
    # an activation on the border of a step goes the other way then.
    paths = {
        made.run: 1e-9,
        tmp_path / "packed": 1e-9,
        tmp_path / "24": 5e-3,
        tmp_path / "onnx": 5e-3,
    }
    for path, off in paths.items():
        run = made.run if path.name == "onnx" else None
        found = evaluate_file(Request(path, run=run, words=made.words))
        assert found["task"] == made.task
        assert abs(found["loss"] - expected["loss"]) <= off * max(1, expected["loss"])
        for name in expected["headline"]:
            # One of the 24 samples' predictions may be the other one then.
            hits = 1 / 24 if off > 1e-6 else 0
            size = max(1.0, abs(expected[name]))
            assert abs(found[name] - expected[name]) <= (off + hits) * size, path
        assert len(found["sha256"]) == 64 and found["bytes"] > 0


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    run = tiny.save_model(folder / "run")
    model = AutoModelForSequenceClassification.from_pretrained(run)
    model.save_pretrained(run)
    data = tiny.write_rows(folder / "data.json", tiny.sentences(24))
    file = export_onnx(model, sample_of(run), run / "model.onnx").path
    return SimpleNamespace(run=run, file=file, words=data_words(data, folder))


def test_the_run_of_an_exported_file_is_the_folder_above(classifier, monkeypatch):
    export = classifier.run / "export"
    export.mkdir()
    file = export / "onnxruntime.onnx"
    shutil.copy(classifier.file, file)
    named = evaluate_file(Request(file, run=classifier.run, words=classifier.words))
    monkeypatch.chdir(export)
    for path in (file, export, Path(file.name), Path()):
        found = evaluate_file(Request(path, words=classifier.words))
        assert Path(found["run"]) == classifier.run.resolve()
        assert found["loss"] == named["loss"] and found["sha256"] == named["sha256"]


def test_the_command_writes_json(classifier, tmp_path, capsys):
    words = ["evaluate", str(classifier.file), "--json", str(tmp_path / "e.json")]
    assert cli.main([*words, *classifier.words]) == 0
    record = json.loads((tmp_path / "e.json").read_text())
    assert record["engine"] == "onnxruntime" and record["samples"] == 24
    assert f"accuracy {record['accuracy']:.4f}" in capsys.readouterr().out
    assert cli.main(["evaluate", *classifier.words, str(classifier.file)]) == 2
    assert "expected the model first" in capsys.readouterr().err


def test_without_flags_the_data_is_that_of_the_runs_command(classifier, tmp_path):
    record = {"command": ["obert", "train", "text_classification", *classifier.words]}
    path = classifier.run / "metrics.json"
    path.write_text(json.dumps(record))
    try:
        assert evaluate_file(Request(classifier.file))["samples"] == 24
        # How much of it is no other data.
        limit = ("--max_eval_samples", "5")
        few = evaluate_file(Request(classifier.file, words=limit))
        assert few["samples"] == 5 and "data.json" in few["data"]
        record["command"][4] = str(tmp_path / "gone.json")
        path.write_text(json.dumps(record))
        refused(classifier, "gone.json.*give them as for `obert train", words=())
    finally:
        path.unlink()


def refused(classifier, message, path=None, **request):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        words = request.pop("words", classifier.words)
        evaluate_file(Request(path or classifier.file, words=words, **request))
    assert "; expected" in str(caught.value)


@pytest.mark.parametrize(
    ("message", "request_"),
    [
        ("--task=ner is unknown", {"task": "ner"}),
        ("not that of model=.*text_class", {"task": "question_answering"}),
        ("--engine=tvm is unknown", {"engine": "tvm"}),
        ("--engine=torch does not read onnx", {"engine": "torch"}),
        ("none.json", {"words": ("--validation_file", "none.json")}),
    ],
)
def test_wrong_requests_are_refused(classifier, message, request_):
    refused(classifier, message, **request_)


def test_data_of_other_classes_is_refused(classifier, tmp_path):
    three = tiny.sentences(24)
    three[0]["label"] = 2
    data = tiny.write_rows(tmp_path / "three.json", three)
    refused(classifier, "has 3|classes", words=data_words(data, tmp_path))


def test_a_file_that_its_folder_is_not_loaded_from_is_refused(classifier, tmp_path):
    copy_along(classifier.run, tmp_path / "run")
    for name in ("model.safetensors", "older.safetensors"):
        shutil.copy(classifier.run / "model.safetensors", tmp_path / "run" / name)
    with pytest.raises(ValueError, match="older.* is not what .* loaded from, model.s"):
        evaluate_file(Request(tmp_path / "run" / name, words=classifier.words))


def test_a_head_that_was_not_trained_is_refused(classifier, tmp_path):
    saved = load_file(classifier.run / "model.safetensors")
    encoder = {name: one for name, one in saved.items() if "classifier" not in name}
    copy_along(classifier.run, tmp_path / "run")
    save_file(encoder, tmp_path / "run" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks classifier.bias, classifier.weight"):
        evaluate_file(Request(tmp_path / "run", words=classifier.words))


def test_damaged_and_foreign_files_are_refused(classifier, tmp_path):
    whole = classifier.file.read_bytes()
    bad = tmp_path / "bad.onnx"
    for data in (whole[: len(whole) // 2], b"", b"<html>", whole[::-1]):
        bad.write_bytes(data)
        refused(classifier, "damaged or no ONNX", bad, run=classifier.run)
    lone = tmp_path / "lone.onnx"
    lone.write_bytes(whole)
    refused(classifier, "has no config.json in", lone)
    pixels, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])
        for name in ("pixels", "y")
    )
    nodes = [onnx.helper.make_node("Relu", ["pixels"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "g", [pixels], [y])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), lone)
    refused(classifier, "takes pixels; expected input_ids", lone, run=classifier.run)
    copy_along(classifier.run, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"\x10" * 100)
    refused(classifier, "cannot be loaded", tmp_path / "run")


def test_a_graph_of_other_classes_is_refused(classifier, tmp_path):
    three = AutoModelForSequenceClassification.from_pretrained(
        classifier.run, num_labels=3, ignore_mismatched_sizes=True
    )
    sample = sample_of(classifier.run)
    path = export_onnx(three, sample, tmp_path / "three.onnx").path
    message = "gives logits of 3; expected logits of 2 classes"
    refused(classifier, message, path, run=classifier.run)


def test_the_openvino_engine_gives_what_onnxruntime_does(classifier):
    pytest.importorskip("openvino")
    ids = torch.randint(5, 20, (3, 7))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    one, other = (
        open_graph(classifier.file, engine)(**given)["logits"]
        for engine in ("onnxruntime", "openvino")
    )
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class _Sums(GraphModel):
    """Each row's tokens, summed up to each position; sees what it is given."""

    def __init__(self, rows: int | None, tokens: int | None) -> None:
        shapes = dict.fromkeys(("input_ids", "token_type_ids"), (rows, tokens))
        opened = Opened(shapes, ("start_logits", "sum"), self._sums)
        super().__init__(Path("g.onnx"), opened)
        self.seen = []

    def _sums(self, arrays):
        self.seen.append({name: one.shape for name, one in arrays.items()})
        ids = arrays["input_ids"] + arrays["token_type_ids"]
        return {"start_logits": ids.cumsum(1).astype(np.float32), "sum": ids.sum(1)}


@pytest.mark.parametrize("rows", [None, 1, 2, 3, 8])
@pytest.mark.parametrize("tokens", [None, 4, 9])
def test_fixed_shapes_are_filled_and_cut(rows, tokens):
    ids = torch.arange(1, 13).reshape(3, 4)
    model = _Sums(rows, tokens)
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(found["start_logits"], ids.cumsum(1).float())
    assert torch.equal(found["sum"], ids.sum(1))
    shapes = {shape for seen in model.seen for shape in seen.values()}
    assert shapes == {(rows or 3, tokens or 4)}


@pytest.mark.parametrize("name", ["logits", "sentence_embedding"])
def test_as_many_features_as_tokens_are_not_cut(name):
    opened = Opened(
        {"input_ids": (2, 6)}, (name,), lambda given: {name: np.eye(2, 6, 1)}
    )
    ids = torch.ones(2, 4, dtype=torch.int64)
    found = GraphModel(Path("g.onnx"), opened)(input_ids=ids)[name]
    assert torch.equal(found, torch.from_numpy(np.eye(2, 6, 1)))


def test_a_sample_that_is_too_long_is_an_error():
    ids = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="give --max_seq_length 3"):
        _Sums(1, 3)(input_ids=ids)
