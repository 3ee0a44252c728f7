"""The sparse engine in the commands: exported, evaluated, timed, counted, advised."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from obert_modifiers.cli import main
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.cpu import host_cpu
from obert_modifiers.deploy import checks
from obert_modifiers.deploy.bench import advise
from obert_modifiers.deploy.bench.cases import Case
from obert_modifiers.deploy.bench.rounds import Measured
from obert_modifiers.deploy.export import export_run
from obert_modifiers.deploy.formats.sparse_model import describe
from obert_modifiers.deploy.run import load_run
from obert_modifiers.runtime import SparseEncoder
from tests.deploy.models import save


@pytest.fixture
def run(tmp_path):
    return save(tmp_path / "mine", Scheme())


def test_a_folder_is_all_that_it_needs(run, tmp_path, capsys) -> None:
    out = tmp_path / "elsewhere"
    words = ["export", str(run), "--format", "sparse", "--int8", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "linear layers in INT8" in said and "of PyTorch's largest" in said
    names = {path.name for path in out.iterdir()}
    assert {"sparse.safetensors", "config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    text = "a sentence that is exported"
    loaded = load_run(run)
    with torch.no_grad():
        expected = loaded.model(**loaded.sample()).logits.numpy()
    found = SparseEncoder.load(out).texts([text]).logits
    assert np.abs(found - expected).max() <= checks.FEW_STEPS * np.abs(expected).max()


def test_a_file_that_computes_something_else_is_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "FEW_STEPS", -1.0)
    with pytest.raises(ValueError, match="gives other outputs than the model"):
        export_run(run, "sparse", tmp_path / "out")
    assert not (tmp_path / "out" / "sparse.safetensors").exists()


def test_it_is_timed_and_counted_beside_others(run, tmp_path, capsys) -> None:
    out = tmp_path / "sparse"
    export_run(run, "sparse", out)
    told = tmp_path / "bench.json"
    words = ["bench", str(out), str(run), "--engine", "sparse,onnxruntime"]
    effort = ["--batch", "2", "--seq", "8", "--seconds", "0.02", "--rounds", "2"]
    assert main([*words, *effort, "--json", str(told)]) == 0
    rows = json.loads(told.read_text())["results"]
    engines = [(row["model"], row["engine"]) for row in rows]
    assert engines == [
        ("sparse", "sparse"),
        ("mine", "sparse"),
        ("mine", "onnxruntime"),
    ]
    assert rows[0]["facts"]["path"] and rows[0]["facts"]["weights_bytes"]
    capsys.readouterr()
    assert main(["sizes", str(run), str(out), "--json", str(told)]) == 0
    plain, packed = json.loads(told.read_text())
    for name in ("parameters", "prunable", "zeros"):
        if name in plain:
            assert packed[name] == plain[name], name


def test_advice_names_the_fastest_and_how_it_is_written(tmp_path) -> None:
    path, source = tmp_path / "0_sparse", tmp_path / "run"
    cases = [
        Case("run", path, "onnxruntime", 1, 128, source=source),
        Case("run", path, "sparse", 1, 128, source=source),
        Case("run", path, "openvino", 1, 128, True, source),
    ]
    seconds = (0.02, 0.01, 0.03)
    found = [
        Measured(case, {}, [[one] * 3] * 2, [3 * one] * 2)
        for case, one in zip(cases, seconds, strict=True)
    ]
    lines = advise.advice(found, host_cpu())
    assert lines[0] == f"on this CPU, {host_cpu().name}:"
    assert lines[1] == (
        "batch 1, sequence 128: run on sparse, 100 items/s, 10 ms, 2.00 times "
        "onnxruntime, 3.00 times openvino (bf16)"
    )
    assert lines[2] == f"  obert export {source} --format sparse"
    found[1].rounds[0][0] = 9.0  # a neighbour at work
    assert advise.advice(found, host_cpu())[1].startswith(
        "batch 1, sequence 128: run on sparse"
    )
    lines = advise.advice([found[0]], host_cpu())
    assert lines[2] == f"  obert export {source} --target onnxruntime"
    assert "sparse" in advise.candidates() and "torch" not in advise.candidates()


def test_bf16_is_tried_where_the_cpu_has_it(tmp_path) -> None:
    cases = [Case("a", tmp_path, name, 1, 8) for name in ("sparse", "openvino")]
    amx = replace(host_cpu(), features=frozenset({"amx-bf16"}))
    tried = [(one.engine, one.bf16) for one in advise.with_bf16(cases, amx)]
    assert tried == [("sparse", False), ("openvino", False), ("openvino", True)]
    none = replace(host_cpu(), features=frozenset({"avx2"}))
    assert advise.with_bf16(cases, none) == cases


def test_the_advice_of_the_command(run, capsys, monkeypatch) -> None:
    monkeypatch.setattr(advise, "candidates", lambda: ["sparse"])
    effort = ["--batch", "1", "--seq", "8", "--seconds", "0.02", "--rounds", "2"]
    assert main(["bench", str(run), "--advise", *effort]) == 0
    said = capsys.readouterr().out
    assert f"obert export {run} --format sparse" in said


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
REFUSED = {
    "MobileBert": ("MobileBertModel", {}, "model_type=mobilebert"),
    "ModernBert": ("ModernBertModel", {}, "model_type=modernbert"),
    "an activation": ("BertModel", {"hidden_act": "silu"}, "activation=silu"),
    "a decoder": ("BertModel", {"is_decoder": True}, "is_decoder=True"),
    "multiple choice": ("BertForMultipleChoice", {}, "class=BertForMultipleChoice"),
    "odd widths": ("BertModel", {"intermediate_size": 30}, "in_features=30"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_it_does_not_compute_is_named(case) -> None:
    name, changes, said = case
    model_class = getattr(transformers, name)
    shape = SMALL | {"vocab_size": 40, "intermediate_size": 64} | changes
    if name == "ModernBertModel":
        shape |= {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
        shape |= {"bos_token_id": 1, "eos_token_id": 2}
    model = model_class(model_class.config_class(**shape))
    with pytest.raises(ValueError, match=f"{said}.*another format"):
        describe(model)
