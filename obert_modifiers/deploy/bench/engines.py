"""The engines: each opens a model and gives a function that runs one batch."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from obert_modifiers.deploy.engines import import_engine
from obert_modifiers.deploy.sessions import open_session

Batch = Mapping[str, np.ndarray]
# Weights of which less is zero are left dense; the papers' least sparsity is 0.8.
_LEAST_SPARSITY = 0.7


@dataclass(frozen=True)
class Opened:
    """A model that is ready.

    Attributes:
        run: Runs one batch.
        facts: What the engine says of itself and the model.
    """

    run: Callable[[], Any]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """How a model is run.

    Attributes:
        batch: Sequences at once.
        seq: Tokens of each.
        cores: How many cores the process has.
        bf16: Let OpenVINO compute floating point in bfloat16.
    """

    batch: int
    seq: int
    cores: int
    bf16: bool = False


def open_model(engine: str, path: Path, setting: Setting) -> Opened:
    """Open a model on an engine.

    Args:
        engine: ``onnxruntime``, ``openvino``, ``deepsparse`` or ``torch``.
        path: The file, or for torch a run's folder.
        setting: How it is run.

    Returns:
        What runs a batch, the same each time.

    Raises:
        ValueError: If the engine is not installed, or cannot read the file.
    """  # noqa: DOC502  raised by what is called
    return _OPEN[engine](path, setting)


def make_batch(names: list[str], batch: int, seq: int) -> dict[str, np.ndarray]:
    """Make inputs without padding: what is in them does not change the time.

    Args:
        names: Names of the inputs.
        batch: Sequences.
        seq: Tokens of each.

    Returns:
        Arrays of int64.
    """
    generator = np.random.default_rng(0)
    values = {
        "input_ids": generator.integers(5, 25, (batch, seq)),  # in every vocabulary
        "attention_mask": np.ones((batch, seq), np.int64),
    }
    zeros = np.zeros((batch, seq), np.int64)
    return {name: values.get(name, zeros) for name in names}


def _onnxruntime(path: Path, setting: Setting) -> Opened:
    engine = import_engine("onnxruntime")
    options = engine.SessionOptions()
    options.intra_op_num_threads = setting.cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that wait for the next batch would take time from the other models.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = open_session(path, options)
    except Exception as error:  # its own classes, one for each code
        raise _unreadable("onnxruntime", path, error) from error
    names = [one.name for one in session.get_inputs()]
    feed = make_batch(names, setting.batch, setting.seq)
    return Opened(lambda: session.run(None, feed), {"version": engine.__version__})


def _openvino(path: Path, setting: Setting) -> Opened:
    engine = import_engine("openvino")
    core = engine.Core()
    try:
        graph = core.read_model(str(path))
        shape = [setting.batch, setting.seq]
        graph.reshape({one.any_name: shape for one in graph.inputs})
        compiled = core.compile_model(graph, "CPU", _openvino_config(setting))
    except RuntimeError as error:
        raise _unreadable("openvino", path, error) from error
    request = compiled.create_infer_request()
    names = [one.any_name for one in compiled.inputs]
    feed = make_batch(names, setting.batch, setting.seq)
    return Opened(
        lambda: request.infer(feed, share_inputs=True),
        {
            "version": engine.__version__,
            "precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "sparse_weights_rate": _LEAST_SPARSITY,
        },
    )


def _openvino_config(setting: Setting) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": setting.cores,
        # Left alone it takes bfloat16 where the CPU has it: other outputs.
        "INFERENCE_PRECISION_HINT": "bf16" if setting.bf16 else "f32",
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": _LEAST_SPARSITY,
    }


def _deepsparse(path: Path, setting: Setting) -> Opened:
    engine = import_engine("deepsparse")
    onnx = importlib.import_module("onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    names = [one.name for one in graph.input]
    try:  # not told the sizes: it would write them into the file
        opened = engine.Engine(
            str(path), batch_size=setting.batch, num_cores=setting.cores
        )
    except (RuntimeError, ValueError) as error:
        raise _unreadable("deepsparse", path, error) from error
    feed = make_batch(names, setting.batch, setting.seq)
    inputs = [np.ascontiguousarray(feed[name]) for name in names]
    return Opened(
        lambda: opened.run(inputs, val_inp=False),
        {
            "version": engine.__version__,
            "fraction_of_supported_ops": opened.fraction_of_supported_ops,
            "instructions": f"{opened.cpu_avx_type}"
            f"{' vnni' if opened.cpu_vnni else ''}",
        },
    )


def _torch(path: Path, setting: Setting) -> Opened:
    torch = importlib.import_module("torch")
    from obert_modifiers.deploy.run import load_run

    torch.set_num_threads(setting.cores)
    run = load_run(path)
    feed = make_batch(list(run.sample()), setting.batch, setting.seq)
    inputs = {name: torch.from_numpy(value) for name, value in feed.items()}

    def once() -> Any:
        with torch.inference_mode():
            return run.model(**inputs)

    return Opened(once, {"version": torch.__version__, "fake_quant": run.quantized})


_OPEN = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "deepsparse": _deepsparse,
    "torch": _torch,
}


def _unreadable(engine: str, path: Path, error: Exception) -> ValueError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return ValueError(
        f"model={path} cannot be opened by {engine} ({why}); expected a file that "
        f"`obert export` wrote for it; export it again"
    )
