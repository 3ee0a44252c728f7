"""Sums of INT8 products that 16 bits cannot hold: found, and in no file by default."""

import itertools
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from obert_modifiers.core.quantization.scheme import (
    Scheme,
    hold_weights_,
    quantizers_of,
)
from obert_modifiers.cpu import Cpu, host_cpu
from obert_modifiers.deploy.engines import ENGINES, engine_advice
from obert_modifiers.deploy.engines import onnxruntime as sessions
from obert_modifiers.deploy.export import export_run
from obert_modifiers.deploy.formats.format import Options
from obert_modifiers.deploy.formats.openvino import export_openvino
from obert_modifiers.deploy.onnx import export as onnx_export
from obert_modifiers.deploy.onnx import saturation
from obert_modifiers.deploy.onnx.graph import Graph
from obert_modifiers.deploy.onnx.saturation import count_saturating, saturating_layers
from tests.deploy.integers import evaluate
from tests.deploy.models import (
    FEW_STEPS,
    arrays_of,
    export,
    farthest,
    inputs,
    make,
    numpy_of,
    quantized_,
    run,
    save,
)

REDUCED, FULL = Scheme(), Scheme(reduce_range=False)
ROWS = Scheme(per_channel=True, reduce_range=False)
HASWELL = Cpu("of 2013", "x86_64", frozenset({"avx2", "fma"}))
BATCH = inputs(24, 11, 7)


def brute_force(weight: np.ndarray) -> int:
    """Try the largest and least activations of each pair."""
    count = 0
    for row in weight.astype(int).tolist():
        row = [*row, *([0] if len(row) % 2 else [])]
        for a, b in zip(row[::2], row[1::2], strict=True):
            sums = [x * a + y * b for x, y in itertools.product((0, 255), repeat=2)]
            count += not (-(2**15) <= min(sums) and max(sums) < 2**15)
    return count


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 5), (40, 24)])
def test_pairs_are_counted_as_by_hand(shape) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        weight = generator.integers(-128, 128, shape).astype(np.int8)
        assert count_saturating(weight) == brute_force(weight)


@pytest.mark.parametrize(
    ("pair", "count"),
    [
        ((127, 1), 0),
        ((127, 2), 1),
        ((64, 64), 0),
        ((64, 65), 1),
        ((-64, -64), 0),
        ((-64, -65), 1),
        ((-128, 0), 0),
        ((-128, -1), 1),
        ((127, -127), 0),  # of two signs: they cannot add up
        ((63, 63), 0),
    ],
)
def test_the_borders_of_16_bits(pair, count) -> None:
    assert count_saturating(np.array([pair], np.int8)) == count
    # Pairs begin at even places: the same numbers one place on are two pairs.
    apart = np.array([[0, *pair, 0]], np.int8)
    assert count_saturating(apart) == 0
    # A count that forgets signs is another one.
    forgets = int(np.abs(pair).sum() * 255 > 2**15 - 1)
    assert forgets == count or pair in ((127, -127), (-64, -64), (-128, 0))


def logits_of(model) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(**BATCH).logits.numpy()]


@pytest.fixture
def planted(monkeypatch):
    """The wrong exporter: it leaves INT8 weights as they are."""
    for name in ("unsigned", "float"):
        monkeypatch.setitem(onnx_export.SATURATING, name, saturating_layers)


@pytest.mark.parametrize("scheme", [REDUCED, FULL, ROWS])
def test_the_default_file_is_right_without_vnni(scheme, tmp_path) -> None:
    model, batch = make(scheme=scheme), numpy_of(BATCH)
    found = export(model, tmp_path)
    assert bool(found.saturating) == (scheme is not REDUCED)
    exact = evaluate(found.path, batch, False)
    without_vnni = evaluate(found.path, batch, True)
    assert all(map(np.array_equal, exact, without_vnni))
    assert farthest(exact, logits_of(model)) < FEW_STEPS
    # The engine on this CPU, whichever it is, against the graph in integers.
    assert farthest(run(found.path, batch), exact) < FEW_STEPS


@pytest.mark.parametrize("scheme", [FULL, ROWS])
def test_a_file_that_saturates_is_wrong_there(scheme, tmp_path, planted) -> None:
    batch = numpy_of(BATCH)
    found = export(make(scheme=scheme), tmp_path)
    stored = saturating_layers(Graph(onnx.load(found.path)))
    assert found.saturating and stored.keys() == found.saturating.keys()
    exact = evaluate(found.path, batch, False)
    without_vnni = evaluate(found.path, batch, True)
    assert farthest(without_vnni, exact) > 2 * FEW_STEPS
    # The engine is one of the two: a kernel that saturates, and no wrong file.
    right = without_vnni if host_cpu().saturates else exact
    assert farthest(run(found.path, batch), right) < FEW_STEPS
    # Opened as `obert evaluate` and `obert bench` do, it is right on every CPU.
    assert farthest(run(found.path, batch, sessions.open_session), exact) < FEW_STEPS


def test_reduced_weights_stay_within_their_range() -> None:
    model = make(scheme=REDUCED)  # ranges are fixed
    weight = model.bert.encoder.layer[0].output.dense.weight
    one = quantizers_of(model)["bert.encoder.layer.0.output.dense:weight"]
    with torch.no_grad():
        weight.mul_(1.5)
    grid = (one(weight, False) / one.scale).round()
    assert grid.abs().max() > 63  # without being held
    hold_weights_(model)
    held = (one(weight, False) / one.scale).round()
    assert torch.equal(held, grid.clamp(-63, 63))
    embedding = quantizers_of(model)["bert.embeddings.word_embeddings:weight"]
    assert embedding.limit == 127  # not multiplied


def test_the_command_names_layer_and_fix(tmp_path) -> None:
    def lines(run, *options):
        found = export_run(run, "onnx", None, *options)
        return [one for one in found.facts if "16 bits" in one]

    run = save(tmp_path / "run", FULL)
    (line,) = lines(run)
    assert "bert.encoder.layer.0." in line and "reduce_range: true" in line
    assert "UINT8" in line
    (line,) = lines(run, Options("deepsparse", (2, 8)))
    assert "may be wrong" in line
    assert not lines(save(tmp_path / "reduced", REDUCED))


def test_zeros_are_128_in_unsigned_weights(tmp_path) -> None:
    model = make()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight[:, ::4] = 0.0
    found = export(quantized_(model, FULL, inputs(4, 11)), tmp_path)
    stored = arrays_of(found.path).values()
    unsigned = [one for one in stored if one.dtype == np.uint8 and one.ndim == 2]
    assert len(unsigned) == len(found.saturating)
    zeroed = [layer for layer in found.saturating if "intermediate" in layer]
    assert zeroed
    for layer in zeroed:
        one = quantizers_of(model)[f"{layer}:weight"]
        grid = model.get_parameter(f"{layer}.weight").detach() / one.scale
        expected = (grid.round() + 128).to(torch.uint8).numpy()
        assert (expected[:, ::4] == 128).all()
        assert any(np.array_equal(expected, array) for array in unsigned)


def test_a_session_is_told_where_the_cpu_needs_it(tmp_path, monkeypatch, planted):
    found = export(make(scheme=FULL), tmp_path)
    monkeypatch.setattr(sessions, "host_cpu", lambda: HASWELL)
    options = onnxruntime.SessionOptions()
    sessions.open_session(found.path, options)
    assert options.get_session_config_entry(sessions.EXACT_SUMS) == "1"

    class Refusing:
        SessionOptions = onnxruntime.SessionOptions

        @staticmethod
        def InferenceSession(path, options, providers):
            if options.get_session_config_entry(sessions.EXACT_SUMS) == "1":
                raise RuntimeError("does not open")
            return "opened"

    monkeypatch.setattr(sessions, "import_engine", lambda name: Refusing)
    with pytest.warns(UserWarning, match="without VNNI.*bert.encoder.layer.") as seen:
        assert sessions.open_session(found.path) == "opened"
    assert len(seen) == 1


OPENVINO = """
import sys
import numpy as np
import openvino

compiled = openvino.Core().compile_model(
    sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
)
given = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], compiled(given)[0])
"""


def off_on_avx2(model, tmp_path) -> float:
    """Run a file with OpenVINO's kernels for AVX2, whatever the CPU has beside it."""
    pytest.importorskip("openvino")
    path = export_openvino(model, inputs(2, 6), tmp_path / "m.xml").path
    np.savez(tmp_path / "batch.npz", **numpy_of(BATCH))
    words = [path, tmp_path / "batch.npz", tmp_path / "found.npy"]
    subprocess.run(
        [sys.executable, "-c", OPENVINO, *map(str, words)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        check=True,
    )
    return farthest([np.load(tmp_path / "found.npy")], logits_of(model))


@pytest.mark.parametrize("scheme", [REDUCED, FULL, ROWS])
def test_openvino_on_avx2(scheme, tmp_path) -> None:
    assert off_on_avx2(make(scheme=scheme), tmp_path) < FEW_STEPS


@pytest.mark.parametrize("scheme", [FULL, ROWS])
def test_openvinos_kernels_for_avx2_saturate(scheme, tmp_path, planted) -> None:
    assert off_on_avx2(make(scheme=scheme), tmp_path) > 2 * FEW_STEPS


@pytest.mark.parametrize(
    ("machine", "features", "saturates"),
    [
        ("x86_64", {"avx2", "fma"}, True),
        ("AMD64", {"avx2", "avx512f"}, True),
        ("x86_64", {"avx2", "avx512f", "avx512vnni"}, False),
        ("x86_64", {"avx2", "avxvnni"}, False),
        ("x86_64", {"avx2", "avx512f", "avx512vnni", "amx-int8", "amx-bf16"}, False),
        ("aarch64", {"neon", "dotprod"}, False),
    ],
)
def test_what_a_cpu_has_and_what_follows(machine, features, saturates) -> None:
    cpu = Cpu("made up", machine, frozenset(features))
    assert cpu.saturates == saturates
    assert cpu.has_bf16 == ("amx-bf16" in features)
    advice = engine_advice(cpu)
    assert advice.keys() == ENGINES.keys()
    assert ("without VNNI" in advice["openvino"]) == saturates
    assert ("bfloat16 pays" in advice["torch"]) == ("amx-bf16" in features)
    assert len(cpu.instruction_sets) == len(features)


def test_the_host_is_described() -> None:
    cpu = host_cpu()
    assert cpu.name and cpu.machine and cpu.instruction_sets
    assert saturation.describe({"a": 2, "b": 3, "c": 1, "d": 1}) == (
        "b (3 sums), a (2 sums), c (1 sums) and 1 more"
    )
