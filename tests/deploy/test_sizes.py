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
from tests.deploy.models import quantized_, save_pruned, save_quantized


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


def sample(folder):
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    return tokenizer(["the film is fine"], return_tensors="pt")


def test_every_format_counts_the_same(run, tmp_path):
    model = BertForSequenceClassification.from_pretrained(run)
    expected = counts(model)
    export_onnx(model, sample(run), tmp_path / "model.onnx")
    export_packed(run, tmp_path / "packed")
    export_torch24(run, tmp_path / "24", dtype="float32")
    for path in (run, tmp_path / "model.onnx", tmp_path / "packed", tmp_path / "24"):
        assert counted(path) == expected, path


@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_are_counted_without_their_scales(run, tmp_path, per_channel):
    model = BertForSequenceClassification.from_pretrained(run)
    quantized_(model, Scheme(per_channel=per_channel), sample(run))
    export_onnx(model, sample(run), tmp_path / "model.onnx")
    export_packed(save_quantized(model, tmp_path / "qat"), tmp_path / "packed")
    state = load_packed(tmp_path / "packed")
    rounded = BertForSequenceClassification.from_pretrained(run)
    rounded.load_state_dict(state)
    expected = counts(rounded)
    assert counted(tmp_path / "packed") == expected
    assert counted(tmp_path / "model.onnx") == expected


def test_bytes_are_those_of_the_files(run, tmp_path):
    found = measure(run)
    data = (run / "model.safetensors").read_bytes()
    assert found.bytes == len(data)
    # The headers differ: ours has no name and no time in it.
    assert abs(found.gzip_bytes - len(gzip.compress(data, 6))) < 64


def test_ratios_are_to_the_reference(run, tmp_path):
    export_packed(run, tmp_path / "packed")
    packed = tmp_path / "packed"
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
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": 40,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
        | shape,
    )
    model = AutoModel.from_config(config)
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
    nodes = [
        helper.make_node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"], "/layer.0/fc")
    ]
    scalars = [
        numpy_helper.from_array(np.uint8(n), name)
        for name, n in (("xz", 128), ("wz", zero_point))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [None, 4])],
        [numpy_helper.from_array(weight, "w"), *scalars],
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
    with pytest.raises(ValueError, match="needs 24 bytes of m.bin, which has 20"):
        measure(tmp_path)
    (tmp_path / "m.xml").write_text(IR[:100])
    with pytest.raises(ValueError, match="is no whole XML file"):
        measure(tmp_path)


def test_what_is_no_model_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there; expected"):
        measure(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no model; expected"):
        measure(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="no model that is known here"):
        measure(tmp_path / "a.txt")
    (tmp_path / "a.onnx").write_bytes(b"\x00\x01not a graph")
    with pytest.raises(ValueError, match="damaged or no ONNX file"):
        measure(tmp_path / "a.onnx")
    integer_graph(tmp_path / "b.onnx", 0)
    with pytest.raises(ValueError, match=r"several models: a.onnx, b.onnx; expected"):
        measure(tmp_path)
    data = (tmp_path / "b.onnx").read_bytes()
    (tmp_path / "a.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="damaged or no ONNX file"):
        measure(tmp_path / "a.onnx")


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
