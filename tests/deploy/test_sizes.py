"""Sizes of each format against counts of the model itself."""

import gzip
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import (
    AutoConfig,
    AutoModel,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from obert_modifiers import cli
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.artefact import find_artefact
from obert_modifiers.deploy.formats.safetensors_packed import export_packed, load_packed
from obert_modifiers.deploy.formats.torch24 import export_torch24
from obert_modifiers.deploy.onnx import export_onnx
from obert_modifiers.deploy.weight import in_a_layer
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.report.sizes import measure, measure_all
from obert_modifiers.sizes import weight_files
from tests.deploy.models import SHAPE, quantized_, save_pruned, save_quantized


def test_weights_that_are_not_read_are_not_counted(tmp_path):
    names = ("model-00001-of-00002", "model-00002-of-00002", "model.fp16")
    files = [tmp_path / f"{name}.safetensors" for name in names]
    for path in files:
        path.touch()
    assert weight_files(tmp_path) == files
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny run whose encoder is 2:4."""
    folder = save_pruned(tmp_path_factory.mktemp("run"))
    model = BertForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        # A graph keeps one of several equal constants, as new biases are.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


def counts(model) -> dict[str, int]:
    """Count a model's numbers from the definition."""
    prunable = [model.get_parameter(name) for name in encoder_weights(model)]
    every = list(model.parameters())
    return {
        "parameters": sum(w.numel() for w in every),
        "parameters_nonzero": sum(int((w != 0).sum()) for w in every),
        "prunable": sum(w.numel() for w in prunable),
        "prunable_nonzero": sum(int((w != 0).sum()) for w in prunable),
    }


def counted(path) -> dict[str, int]:
    record = measure(path).record()
    return {name: record[name] for name in counts(torch.nn.Linear(1, 1))}


@pytest.fixture
def sample(run):
    tokenizer = BertTokenizerFast.from_pretrained(run)
    return tokenizer(["the film is fine"], return_tensors="pt")


def test_every_format_counts_the_same(run, sample, tmp_path):
    model = BertForSequenceClassification.from_pretrained(run)
    expected = counts(model)
    exported = (
        export_onnx(model, sample, tmp_path / "model.onnx"),
        export_packed(run, tmp_path / "packed"),
        export_torch24(run, tmp_path / "24", dtype="float32"),
    )
    for path in (run, *(one.path for one in exported)):
        assert counted(path) == expected, path


@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_are_counted_without_their_scales(run, sample, tmp_path, per_channel):
    model = BertForSequenceClassification.from_pretrained(run)
    quantized_(model, Scheme(per_channel=per_channel), sample)
    graph = export_onnx(model, sample, tmp_path / "model.onnx").path
    qat = save_quantized(model, tmp_path / "qat")
    packed = export_packed(qat, tmp_path / "packed").path
    rounded = BertForSequenceClassification.from_pretrained(run)
    rounded.load_state_dict(load_packed(packed))
    assert counted(packed) == counted(graph) == counts(rounded)


def test_bytes_are_those_of_the_files(run, tmp_path):
    found = measure(run)
    data = (run / "model.safetensors").read_bytes()
    assert found.bytes == len(data)
    # The headers differ: ours has no name and no time in it.
    assert abs(found.gzip_bytes - len(gzip.compress(data, 6))) < 64


def test_ratios_are_to_the_reference(run, tmp_path):
    packed = export_packed(run, tmp_path / "packed").path
    first, second = measure_all([run, packed])
    assert first.ratio == 1.0
    assert second.ratio == first.gzip_bytes / second.gzip_bytes
    same = measure_all([packed], run)
    assert [one.model for one in same] == [str(run), str(packed)]
    assert same[1].ratio == second.ratio
    assert measure_all([packed, run], run)[0].ratio == second.ratio
    assert measure_all([run])[0].ratio is None


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("bert", {}),
        ("roberta", {}),
        ("electra", {}),
        ("distilbert", {"dim": 32, "n_heads": 2, "hidden_dim": 64, "n_layers": 2}),
        ("mobilebert", {"intra_bottleneck_size": 16, "true_hidden_size": 16}),
        ("albert", {"embedding_size": 16}),
    ],
)
def test_the_encoders_weights_are_told_by_their_names(kind, shape, tmp_path):
    model = AutoModel.from_config(AutoConfig.for_model(kind, **SHAPE | shape))
    model.save_pretrained(tmp_path)
    found = {w.name for w in find_artefact(tmp_path).weights() if w.prunable}
    assert found == set(encoder_weights(model))


def test_names_of_layers():
    inside = ("encoder.layer.0.output.dense.weight", "/bert/encoder/layer.11/MatMul")
    outside = ("classifier.weight", "onnx::MatMul_123", "/bert/pooler/MatMul", "x2.y")
    assert all(map(in_a_layer, inside)) and not any(map(in_a_layer, outside))


def integer_graph(path, zero_point: int) -> np.ndarray:
    """Write a product of integers whose weights have a zero point."""
    weight = np.random.default_rng(0).integers(0, 4, (8, 4)).astype(np.uint8)
    inputs = ["x", "w", "xz", "wz"]
    constants = {"w": weight, "xz": np.uint8(128), "wz": np.uint8(zero_point)}
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", inputs, ["y"], "/layer.0/fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, 4])],
        [numpy_helper.from_array(one, name) for name, one in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return weight


def test_a_zero_point_is_what_counts_as_zero(tmp_path):
    weight = integer_graph(tmp_path / "a.onnx", 2)
    found = counted(tmp_path / "a.onnx")
    assert found["prunable"] == found["parameters"] == 32
    assert found["prunable_nonzero"] == int((weight != 2).sum())
    assert (weight != 2).sum() != (weight != 0).sum()


IR = """<?xml version="1.0"?><net name="m" version="11"><layers>
<layer id="0" name="w" type="Const" version="opset1">
<data element_type="i8" shape="2, 3" offset="0" size="6"/></layer>
<layer id="1" name="w/c" type="Convert" version="opset1"/>
<layer id="2" name="z" type="Const" version="opset1">
<data element_type="i8" shape="2, 1" offset="6" size="2"/></layer>
<layer id="3" name="z/c" type="Convert" version="opset1"/>
<layer id="4" name="w/s" type="Subtract" version="opset1"/>
<layer id="5" name="s" type="Const" version="opset1">
<data element_type="f32" shape="2, 1" offset="8" size="8"/></layer>
<layer id="6" name="w/m" type="Multiply" version="opset1"/>
<layer id="7" name="/layer.0/fc/MatMul" type="MatMul" version="opset1"/>
<layer id="8" name="b" type="Const" version="opset1">
<data element_type="f32" shape="2" offset="16" size="8"/></layer>
<layer id="9" name="add" type="Add" version="opset1"/>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="2" from-port="0" to-layer="3" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="4" to-port="0"/>
<edge from-layer="3" from-port="1" to-layer="4" to-port="1"/>
<edge from-layer="4" from-port="2" to-layer="6" to-port="0"/>
<edge from-layer="5" from-port="0" to-layer="6" to-port="1"/>
<edge from-layer="6" from-port="2" to-layer="7" to-port="1"/>
<edge from-layer="7" from-port="2" to-layer="9" to-port="0"/>
<edge from-layer="8" from-port="0" to-layer="9" to-port="1"/>
</edges></net>
"""


def test_an_openvino_ir_is_counted_without_openvino(tmp_path):
    (tmp_path / "m.xml").write_text(IR)
    weight = np.array([[1, 0, 1], [5, 5, 0]], np.int8)
    zero = np.array([1, 5], np.int8)
    rest = np.array([0.1, 0.2, 0.0, 3.0], np.float32)
    data = weight.tobytes() + zero.tobytes() + rest.tobytes()
    (tmp_path / "m.bin").write_bytes(data)
    assert counted(tmp_path) == {
        "parameters": 8,
        "parameters_nonzero": 3,
        "prunable": 6,
        "prunable_nonzero": 2,
    }
    assert measure(tmp_path).bytes == len(IR) + len(data)
    (tmp_path / "m.bin").write_bytes(data[:20])
    refused(tmp_path, "needs 24 bytes of m.bin, which has 20")
    (tmp_path / "m.xml").write_text(IR[:100])
    refused(tmp_path, "is no whole XML file")


def refused(path, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"{message}.*; expected"):
        measure(path)


def test_what_is_no_model_is_refused(tmp_path):
    refused(tmp_path / "missing", "is not there")
    refused(tmp_path, "holds no model")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "no model that is known here")
    integer_graph(tmp_path / "b.onnx", 0)
    whole = (tmp_path / "b.onnx").read_bytes()
    for damaged in (b"\x00\x01not a graph", whole[: len(whole) // 2]):
        (tmp_path / "a.onnx").write_bytes(damaged)
        refused(tmp_path / "a.onnx", "damaged or no ONNX file")
    refused(tmp_path, "several models: a.onnx, b.onnx")


def test_the_command_prints_a_table_and_writes_json(run, tmp_path, capsys):
    export_packed(run, tmp_path / "packed")
    words = ["sizes", str(run), str(tmp_path / "packed"), "--json"]
    assert cli.main([*words, str(tmp_path / "sizes.json")]) == 0
    rows = json.loads((tmp_path / "sizes.json").read_text())
    assert [row["kind"] for row in rows] == ["run", "safetensors"]
    assert rows[0]["sparsity"] > 0.5 and rows[1]["ratio"] > 1.0
    assert "gzip" in capsys.readouterr().out
    assert cli.main(["sizes", str(tmp_path / "missing")]) == 2
    assert "obert: model=" in capsys.readouterr().err
