"""Measuring: figures from their definitions, turns, files that do not fit, errors."""

import json
import os
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from obert_modifiers.cli import main
from obert_modifiers.core.quantization.scheme import Scheme
from obert_modifiers.deploy.bench import rounds, show, worker
from obert_modifiers.deploy.bench.cases import Case, plan_cases
from obert_modifiers.deploy.bench.rounds import Effort, Measured, measure
from obert_modifiers.deploy.bench.worker import make_batch
from obert_modifiers.deploy.engines.engine import Engine, Opened
from obert_modifiers.deploy.onnx import export_onnx
from tests.deploy.models import inputs, make, sizes_of

SIZES = [(2, 6)]
SHORT = Effort(seconds=0.02, rounds=2, warm_up=0.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    plain, quantized = make(), make(scheme=Scheme())
    export_onnx(plain, inputs(2, 6), folder / "dense.onnx")
    export_onnx(quantized, inputs(2, 6), folder / "int8.onnx")
    export_onnx(quantized, inputs(2, 6), folder / "ds.onnx", "deepsparse", SIZES[0])
    return folder


def measured(name="m", turns=((1.0,),), cpu=(1.0,), batch=4) -> Measured:
    case = Case(name, "m.onnx", "onnxruntime", batch, 8)
    return Measured(case, {}, [list(turn) for turn in turns], list(cpu))


def test_figures_are_those_of_the_definitions() -> None:
    one = measured(turns=((0.1, 0.2), (0.3, 0.4)), cpu=(0.6, 1.4))
    found = one.summary()
    assert found["items_per_second"] == pytest.approx(4 * 4 / 1.0)
    assert found["mean_ms"] == pytest.approx(250) == found["median_ms"]
    # Sample standard deviation of 100, 200, 300, 400.
    assert found["sd_ms"] == pytest.approx((50000 / 3) ** 0.5)
    # The 99th percentile lies 0.97 of the way from the third to the fourth.
    assert found["p99_ms"] == pytest.approx(300 + 0.97 * 100)
    assert found["batches"] == 4 and found["cores_busy"] == pytest.approx(2.0)


def test_ratios_are_of_medians_by_item() -> None:
    dense = measured(turns=((0.8,), (1.2,), (1.0,)), cpu=(1.0, 1.0, 1.0), batch=4)
    fast = measured(turns=((0.1,), (0.1,), (0.2,)), cpu=(0.1, 0.1, 0.1), batch=2)
    found = fast.ratio_to(dense)
    assert found["speedup"] == pytest.approx((1.0 / 4) / (0.1 / 2))
    # Rounds: 4, 6 and 2.5; quartiles halfway between.
    assert found["speedup_low"] == pytest.approx((2.5 + 4) / 2)
    assert found["speedup_high"] == pytest.approx((4 + 6) / 2)
    assert found["speedup_cpu"] == pytest.approx((3.0 / 12) / (0.3 / 6))
    assert dense.ratio_to(dense)["speedup"] == 1.0


def test_models_take_turns_and_are_written_down(files, tmp_path) -> None:
    paths = [files / "dense.onnx", files / "int8.onnx"]
    plan = plan_cases(paths, ["onnxruntime"], [*SIZES, (1, 4)], tmp_path)
    names = ("dense.onnx", "int8.onnx")
    in_turns = [(name, *size) for size in ((2, 6), (1, 4)) for name in names]
    assert [(one.name, one.batch, one.seq) for one in plan.cases] == in_turns
    said: list[str] = []
    found = measure(plan.cases, SHORT, said.append)
    assert [one.case for one in found] == list(plan.cases)
    assert all(len(one.rounds) == len(one.cpu) == SHORT.rounds for one in found)
    assert all(turn for one in found for turn in one.rounds)
    assert sum("round" in line for line in said) == 2 * SHORT.rounds
    record = show.record(found, SHORT, (0.0, 0.0))
    show.write_json(tmp_path / "b.json", record)
    back = json.loads((tmp_path / "b.json").read_text())
    assert [row["speedup"] for row in back["results"]][::2] == [1.0, 1.0]
    assert back["versions"]["onnxruntime"] and back["machine"]["cpu"]
    assert len(list(show.tables(found))) == 2
    show.plot(tmp_path / "b.png", found)
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def dense(files):
    return Case("dense", files / "dense.onnx", "onnxruntime", *SIZES[0])


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"),
    reason="os.sched_getaffinity is missing: cores cannot be chosen",
)
def test_the_worker_is_pinned_before_its_engine_is_there(dense) -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    with rounds._worker(dense, [core], SHORT) as worker:
        assert os.sched_getaffinity(worker._process.pid) == {core}
        assert worker.measured.facts["version"]
    assert os.sched_getaffinity(0) == before


def test_what_an_engine_cannot_run_is_left_out_with_why(files, tmp_path) -> None:
    paths = [files / "int8.onnx", files / "ds.onnx"]
    plan = plan_cases(paths, ["onnxruntime", "deepsparse"], SIZES, tmp_path)
    assert [(one.name, one.engine) for one in plan.cases] == [
        ("int8.onnx", "onnxruntime"),
        ("ds.onnx", "onnxruntime"),
        ("ds.onnx", "deepsparse"),
    ]
    assert plan.notes == (
        "deepsparse takes the Q and DQ nodes of int8.onnx for floating point, or ends;"
        " export with --target deepsparse",
    )
    with pytest.raises(ValueError, match="ds.onnx is only for batch size and sequence"):
        plan_cases([files / "ds.onnx"], ["deepsparse"], [(3, 6)], tmp_path)
    with pytest.raises(ValueError, match="--engine=tvm is unknown; expected one of"):
        plan_cases(paths, ["tvm"], SIZES, tmp_path)


def test_deepsparse_gets_a_copy_of_one_size(files, tmp_path) -> None:
    before = (files / "dense.onnx").read_bytes()
    plan = plan_cases([files / "dense.onnx"], ["deepsparse"], SIZES, tmp_path)
    assert (files / "dense.onnx").read_bytes() == before
    for one in onnx.load(plan.cases[0].path).graph.input:
        assert all(axis.dim_value for axis in one.type.tensor_type.shape.dim)
        assert tuple(sizes_of(one)) == SIZES[0]


def test_a_damaged_file_is_refused(files, tmp_path) -> None:
    whole = (files / "dense.onnx").read_bytes()
    damaged = tmp_path / "damaged.onnx"
    for data in (whole[: len(whole) // 2], b"no model at all"):
        damaged.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged or no ONNX file"):
            plan_cases([damaged], ["onnxruntime"], SIZES, tmp_path)
    # One that is past the check is named when its engine refuses it.
    case = Case("m", damaged, "onnxruntime", *SIZES[0])
    with pytest.raises(ValueError, match="cannot be opened by onnxruntime"):
        measure([case], SHORT)


def test_too_little_memory_is_said_before_anything_starts(dense, monkeypatch) -> None:
    little = SimpleNamespace(available=1000)
    monkeypatch.setattr(rounds.psutil, "virtual_memory", lambda: little)
    with pytest.raises(ValueError, match=r"takes about \d+ MB, and 0 MB are free"):
        measure([dense], SHORT)


def test_the_memory_of_all_sizes_is_looked_at_first(dense) -> None:
    said: list[str] = []
    with pytest.raises(ValueError, match="batch=10000000 .* are free"):
        measure([dense, replace(dense, batch=10_000_000)], SHORT, said.append)
    assert not said


def test_a_process_that_was_killed_for_memory(dense) -> None:
    with rounds._worker(dense, rounds.pick_cores(1), SHORT) as worker:
        worker._process.kill()
        worker._process.wait()
        with pytest.raises(ValueError, match="takes more memory than there is"):
            worker.turn(0.01)


def test_cores_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="--cores=4096 is not what there is"):
        rounds.pick_cores(4096)


def test_inputs_are_in_every_vocabulary() -> None:
    names = ["input_ids", "attention_mask", "token_type_ids"]
    found = make_batch(names, 3, 5)
    assert list(found) == names
    assert all(one.shape == (3, 5) and one.dtype == np.int64 for one in found.values())
    assert found["input_ids"].max() < 30 and found["attention_mask"].all()


def test_openvino_runs_both_precisions(files, tmp_path) -> None:
    pytest.importorskip("openvino")
    paths = [files / "dense.onnx", files / "int8.onnx"]
    for bf16 in (False, True):
        plan = plan_cases(paths, ["openvino"], SIZES, tmp_path, bf16)
        assert {one.bf16 for one in plan.cases} == {bf16}
        assert len(measure(plan.cases, SHORT)) == 2


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_float32_is_not_called_bfloat16(precision, tmp_path, monkeypatch) -> None:
    opened = Opened({}, (), lambda given: given, {"precision": precision})
    monkeypatch.setattr(Engine, "open", lambda *_: opened)
    case = Case("m", tmp_path, "openvino", 1, 4, bf16=True)
    spec = {**asdict(case), "cores": [0], "warm_up": 0.0}
    if precision == "bf16":
        assert worker._open(spec)[0]["precision"] == "bf16"
        return
    with pytest.raises(ValueError, match="bf16=True of openvino is computed in f32"):
        worker._open(spec)


def test_deepsparse_runs_all_operators(files, tmp_path) -> None:
    pytest.importorskip("deepsparse")
    plan = plan_cases([files / "ds.onnx"], ["deepsparse"], SIZES, tmp_path)
    (found,) = measure(plan.cases, SHORT)
    assert found.facts["fraction_of_supported_ops"] == 1.0


def test_the_command(files, tmp_path, capsys) -> None:
    words = ["bench", str(files / "dense.onnx"), str(files / "int8.onnx")]
    words += ["--batch", "2", "--seq", "6", "--seconds", "0.02", "--rounds", "2"]
    assert main([*words, "--json", str(tmp_path / "b.json"), "--cores", "1"]) == 0
    assert "int8.onnx" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "b.json").read_text())["results"]) == 2
    assert main([*words, "--batch", "2,x"]) == 2
    assert "--batch=2,x is no list of sizes" in capsys.readouterr().err
    assert main([*words, "--seconds", "0"]) == 2
