"""The files for DeepSparse and OpenVINO there, beside what the model gives."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.artefact import find_artefact
from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.engines.engine import Setting
from obert_modifiers.deploy.formats.openvino import export_openvino
from tests.deploy.models import (
    FEW_STEPS,
    OUTPUTS,
    SCHEMES,
    export,
    farthest,
    inputs,
    make,
    numpy_of,
)

QUANTIZED = [None, Scheme(), Scheme(attention_matmuls=True)]
on_every_model = pytest.mark.parametrize("cls", OUTPUTS)
export_ir = partial(export_openvino, sample=inputs(2, 6))


def outputs_of(model, batch):
    with torch.no_grad():
        return [model(**batch)[name] for name in OUTPUTS[type(model)]]


@pytest.mark.parametrize("scheme", QUANTIZED)
@on_every_model
def test_deepsparse_runs_all_of_it(cls, scheme, tmp_path) -> None:
    engine = pytest.importorskip("deepsparse")
    model, batch = make(cls, scheme), inputs(4, 16, 7)
    path = export(model, tmp_path, "deepsparse", (4, 16)).path
    opened = engine.Engine(str(path), batch_size=4)
    assert opened.fraction_of_supported_ops == 1.0
    ours = opened.run([np.ascontiguousarray(one) for one in numpy_of(batch).values()])
    assert farthest(ours, outputs_of(model, batch)) < FEW_STEPS


@pytest.mark.parametrize("scheme", QUANTIZED)
@on_every_model
def test_openvino_gives_what_the_model_gives(cls, scheme, tmp_path) -> None:
    engine = pytest.importorskip("openvino")
    model = make(cls, scheme)
    path = export_ir(model, path=tmp_path / "m.xml").path
    assert path.with_suffix(".bin").is_file()
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = engine.Core().compile_model(str(path), "CPU", precision)
    for rows, tokens in ((1, 4), (30, 11)):
        batch = inputs(rows, tokens, 7)
        found = compiled(numpy_of(batch))
        ours = [found[place] for place in range(len(OUTPUTS[cls]))]
        off = 1e-4 if scheme is None else FEW_STEPS
        assert farthest(ours, outputs_of(model, batch)) < off


def test_weights_are_int8_and_nothing_is_float16(tmp_path) -> None:
    engine = pytest.importorskip("openvino")
    found = export_ir(make(scheme=Scheme()), path=tmp_path / "m.xml")
    graph = engine.Core().read_model(str(found.path))
    constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
    types = [op.get_element_type().get_type_name() for op in constants]
    assert types.count("i8") >= found.int8_weights == 17
    assert "f16" not in types


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_ir_has_the_weights_of_its_graph(scheme, tmp_path) -> None:
    pytest.importorskip("openvino")
    model = make(scheme=SCHEMES[scheme])
    paths = export(model, tmp_path, "openvino").path, tmp_path / "m.xml"
    export_ir(model, path=paths[1])
    graph, ir = (find_artefact(path).weights() for path in paths)
    assert sum(one.count for one in ir) == sum(one.count for one in graph)
    assert sum(one.nonzero for one in ir) == sum(one.nonzero for one in graph)
    prunable = [sorted(o.nonzero for o in some if o.prunable) for some in (ir, graph)]
    assert prunable[0] == prunable[1] and len(prunable[0]) == 2 * 6


@pytest.mark.parametrize("scheme", [None, Scheme()])
def test_other_weights_are_found(tmp_path, scheme) -> None:
    pytest.importorskip("openvino")
    model, int8 = make(scheme=scheme), scheme is not None
    path = export_ir(model, path=tmp_path / "m.xml").path
    assert "within" in compare(model, inputs(2, 6), path, "openvino", int8)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    with pytest.raises(ValueError, match="gives other outputs than the model"):
        compare(model, inputs(2, 6), path, "openvino", int8)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "deepsparse"])
def test_a_missing_engine_is_named_with_its_extra(engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, engine, None)
    message = rf"engine={engine} is not installed; .*obert-modifiers\[{engine}\]"
    with pytest.raises(ValueError, match=message):
        ENGINES[engine].open(Path("m.onnx"), Setting(1, 4, 1))
    if engine == "openvino":
        with pytest.raises(ValueError, match=message):
            export_ir(make(), path=tmp_path / "m.xml")


def test_another_ending_is_refused(tmp_path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="does not end in .xml"):
        export_ir(make(), path=tmp_path / "m.onnx")
