"""BERT-base shape, pruned and quantized as in oBERT's Table 17, on the engines here.

Random weights, pruned to the pattern: what is zero decides the speed, not the values.
All models take turns on the same cores, each on its engine in a process of its own;
``speed`` is the ratio to dense float32 on ONNX Runtime, of the medians in that run.
An engine that is not installed is left out, and that is said.

    python benchmarks/bench_inference.py [--quick] [--json FILE]
        [--engines onnxruntime,openvino,deepsparse] [--models dense,block4_int8,...]

``--quick`` takes two layers and one, 256 wide. With all engines the models take 13 GB
of memory and the run about 8 minutes on 2 cores; on fewer cores or with less memory,
name fewer engines.
"""

import gc
import os
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _common as common
import torch
from rich.console import Console
from transformers import BertConfig, BertForQuestionAnswering

from obert_modifiers.core.quantization.scheme import Scheme, freeze_, quantize_
from obert_modifiers.deploy.bench import show
from obert_modifiers.deploy.bench.cases import Case
from obert_modifiers.deploy.bench.rounds import Effort, Measured, measure
from obert_modifiers.deploy.onnx import export_onnx
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes

BATCH, SEQ, SPARSITY, GROUP = 32, 128, 0.8, 4
ENGINES = ("onnxruntime", "openvino", "deepsparse")
QUICK = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": 2000,
}


@dataclass(frozen=True)
class Shape:
    """A model of the table.

    Attributes:
        layers: Of the encoder; in ``--quick`` a sixth of them.
        group: Weights that live or die together; 0 for a dense model.
        int8: Whether weights and activations are.
        paper: Speed beside dense on DeepSparse in the paper, 24 cores.
        goal: Speed to reach on DeepSparse.
    """

    layers: int
    group: int
    int8: bool
    paper: float | None = None
    goal: float | None = None


MODELS = {
    "dense": Shape(12, 0, False),
    "unstructured80": Shape(12, 1, False, 3.38, 3.38),
    "block4_int8": Shape(12, GROUP, True, 8.39, 8.0),
    "3layer_block4_int8": Shape(3, GROUP, True, 28.75, 28.0),
}


def make(shape: Shape, quick: bool) -> BertForQuestionAnswering:
    """Make a model with random weights, pruned to the pattern.

    Args:
        shape: What it is like.
        quick: A small one.

    Returns:
        The model, on 8-bit grids where asked.
    """
    torch.manual_seed(0)
    layers = max(1, shape.layers // 6) if quick else shape.layers
    config = BertConfig(num_hidden_layers=layers, **(QUICK if quick else {}))
    model = BertForQuestionAnswering(config).eval()
    for name, weight in model.named_parameters():
        if shape.group and "encoder" in name and weight.ndim == 2:
            kept = torch.rand(weight.numel() // shape.group, 1) >= SPARSITY
            with torch.no_grad():
                weight.view(-1, shape.group).mul_(kept)
    if shape.int8:
        quantize_(model, Scheme(attention_matmuls=True))
        model.train()
        with torch.no_grad():
            model(**sample(8))
        freeze_(model.eval())
    return model


def sample(tokens: int) -> dict[str, torch.Tensor]:
    """Make a batch of two.

    Args:
        tokens: Its length.

    Returns:
        The inputs of BERT.
    """
    ids = torch.arange(5, 5 + 2 * tokens).view(2, tokens)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def export_all(
    names: list[str], engines: list[str], folder: Path, quick: bool
) -> tuple[dict[tuple[str, str], Path], dict[str, dict[str, float]]]:
    """Write each model for each engine.

    Args:
        names: Of :data:`MODELS`.
        engines: Of :data:`ENGINES`.
        folder: Where they are written.
        quick: Small models.

    Returns:
        The files by model and engine, and the sizes of the models in MB, of the file
        for the first engine.
    """
    files: dict[tuple[str, str], Path] = {}
    sizes = {}
    for name in names:
        model = make(MODELS[name], quick)
        for engine in engines:
            shape = (BATCH, SEQ) if engine == "deepsparse" else None
            path = folder / f"{name}_{engine}.onnx"
            export_onnx(model, sample(8), path, engine, shape, integer_bias=True)
            files[name, engine] = path
        first = [files[name, engines[0]]]
        sizes[name] = {
            "mb": plain_bytes(first) / MB,
            "gzip_mb": gzip_bytes(first) / MB,
        }
        print(f"exported {name}: {sizes[name]['gzip_mb']:.1f} MB gzipped", flush=True)
        del model
        gc.collect()
    return files, sizes


def cases_of(files: dict[tuple[str, str], Path]) -> list[Case]:
    """List what is measured; dense on ONNX Runtime is the first.

    Args:
        files: By model and engine.

    Returns:
        A case for each file, and for OpenVINO two, with and without bfloat16.
    """
    cases = []
    for (name, engine), path in files.items():
        cases.append(Case(name, path, engine, BATCH, SEQ))
        if engine == "openvino":
            cases.append(Case(name, path, engine, BATCH, SEQ, bf16=True))
    return cases


def result_of(
    found: list[Measured],
    effort: Effort,
    loads: tuple[float, float],
    sizes: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """Collect what is written down.

    Args:
        found: What was measured.
        effort: How long.
        loads: The machine's load before and after.
        sizes: By model.

    Returns:
        Plain values.
    """
    dense = sizes.get("dense", {}).get("gzip_mb")
    for figures in sizes.values():
        figures["gzip_ratio"] = dense / figures["gzip_mb"] if dense else 0.0
    environment = {"commit": common.environment()["commit"]}
    record = show.record(found, effort, loads)
    for row in record["results"]:
        row["path"] = Path(row["path"]).name  # its folder is gone by now
    return (
        environment
        | record
        | {
            "weights": "random, pruned to the pattern",
            "biases": "INT32 where the engine takes them",
            "models": {name: asdict(MODELS[name]) for name in sizes},
            "sizes": sizes,
        }
    )


def main() -> None:
    """Measure and write the result."""
    arguments = common.parser(__doc__)
    arguments.add_argument("--engines", default=",".join(ENGINES))
    arguments.add_argument("--models", default=",".join(MODELS))
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=15.0)
    arguments.add_argument("--cores", type=int, default=None)
    arguments.add_argument("--plot", type=Path, default=None)
    flags = arguments.parse_args()
    engines = [name for name in flags.engines.split(",") if find_spec(name)]
    for name in set(flags.engines.split(",")) - {*engines}:
        print(f"{name} is not installed and is left out")
    # Three rounds tell that it works.
    effort = Effort(flags.seconds, flags.rounds, 1.0, flags.cores)
    if flags.quick:
        effort = Effort(1.0, 3, 0.2, flags.cores)
    with tempfile.TemporaryDirectory() as folder:
        names = flags.models.split(",")
        files, sizes = export_all(names, engines, Path(folder), flags.quick)
        before = os.getloadavg()[0]
        found = measure(cases_of(files), effort, lambda line: print(line, flush=True))
        loads = (before, os.getloadavg()[0])
    for rows in show.tables(found):
        Console(highlight=False).print(rows)
    result = result_of(found, effort, loads, sizes)
    for one in result["results"]:
        print(
            f"{one['model']} on {one['engine']}{' bf16' if one['bf16'] else ''}: "
            f"{one['speedup']:.2f}x ({one['speedup_low']:.2f} to "
            f"{one['speedup_high']:.2f}), by processors' time {one['speedup_cpu']:.2f}x"
        )
    for name, figures in sizes.items():
        print(
            f"{name}: {figures['mb']:.1f} MB, {figures['gzip_mb']:.1f} MB gzipped, "
            f"{figures['gzip_ratio']:.2f}x less than dense"
        )
    common.write(flags.json, result | {"quick": flags.quick})
    if flags.plot:
        show.plot(flags.plot, found)


if __name__ == "__main__":
    main()
