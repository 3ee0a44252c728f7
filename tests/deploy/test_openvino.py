"""OpenVINO's files against the model, where OpenVINO is installed."""

import sys

import numpy as np
import pytest
import torch

from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.artefact import find_artefact
from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.formats import openvino as exporting
from obert_modifiers.deploy.onnx import export_onnx
from tests.deploy.models import OUTPUTS, SCHEMES, inputs, make

FEW_STEPS = 2e-2


@pytest.mark.parametrize("scheme", [None, Scheme(), Scheme(attention_matmuls=True)])
@pytest.mark.parametrize("cls", OUTPUTS)
def test_the_file_gives_what_the_model_gives(cls, scheme, tmp_path) -> None:
    engine = pytest.importorskip("openvino")
    model = make(cls, scheme)
    found = exporting.export_openvino(model, inputs(2, 6), tmp_path / "m.xml")
    assert found.path.with_suffix(".bin").is_file()
    compiled = engine.Core().compile_model(
        str(found.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for rows, tokens in ((1, 4), (30, 11)):
        batch = inputs(rows, tokens, 7)
        ours = compiled({name: value.numpy() for name, value in batch.items()})
        with torch.no_grad():
            expected = model(**batch)
        for place, name in enumerate(OUTPUTS[cls]):
            right = expected[name].numpy()
            away = np.abs(ours[place] - right) / np.abs(right).max()
            assert away.max() < (1e-4 if scheme is None else FEW_STEPS)


def test_weights_are_int8_and_nothing_is_float16(tmp_path) -> None:
    engine = pytest.importorskip("openvino")
    model = make(scheme=Scheme())
    found = exporting.export_openvino(model, inputs(2, 6), tmp_path / "m.xml")
    graph = engine.Core().read_model(str(found.path))
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    types = [op.get_element_type().get_type_name() for op in constants]
    assert types.count("i8") >= found.int8_weights == 17
    assert "f16" not in types


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_ir_has_the_weights_of_its_graph(scheme, tmp_path) -> None:
    pytest.importorskip("openvino")
    model = make(scheme=SCHEMES[scheme])
    export_onnx(model, inputs(2, 6), tmp_path / "m.onnx", "openvino")
    exporting.export_openvino(model, inputs(2, 6), tmp_path / "m.xml")
    graph, ir = (
        find_artefact(tmp_path / name).weights() for name in ("m.onnx", "m.xml")
    )
    assert sum(one.count for one in ir) == sum(one.count for one in graph)
    assert sum(one.nonzero for one in ir) == sum(one.nonzero for one in graph)
    prunable = [sorted(o.nonzero for o in some if o.prunable) for some in (ir, graph)]
    assert prunable[0] == prunable[1] and len(prunable[0]) == 2 * 6


@pytest.mark.parametrize("scheme", [None, Scheme()])
def test_other_weights_are_found(tmp_path, scheme) -> None:
    pytest.importorskip("openvino")
    model, sample = make(scheme=scheme), inputs(2, 6)
    found = exporting.export_openvino(model, sample, tmp_path / "m.xml")
    int8 = scheme is not None
    assert "within" in compare(model, sample, found.path, "openvino", int8)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    with pytest.raises(ValueError, match="gives other outputs than the model"):
        compare(model, sample, found.path, "openvino", int8)


def test_without_openvino_the_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"=openvino is not .*obert-modifiers\[openv"):
        exporting.export_openvino(make(), inputs(2, 6), tmp_path / "m.xml")


def test_another_ending_is_refused(tmp_path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="does not end in .xml"):
        exporting.export_openvino(make(), inputs(2, 6), tmp_path / "m.onnx")
