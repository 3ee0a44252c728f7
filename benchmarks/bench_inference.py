"""BERT-base shape, pruned and quantized as in oBERT's Table 17, on the engines here.

Random weights, pruned to the pattern: what is zero decides the speed, not the values.
All models take turns on the same cores, each on its engine in a process of its own;
``speed`` is the ratio to dense float32 on ONNX Runtime, of the medians in that run.
An engine that is not installed is left out, and that is said.

    python benchmarks/bench_inference.py [--quick] [--json FILE]
        [--engines onnxruntime,openvino,sparse,deepsparse]
        [--models dense,block4_int8,...] [--batches 32,1] [--reviews]

``--reviews`` takes 32 sentences of the embedded movie reviews, padded to the longest,
in place of 128 tokens. ``--quick`` takes two layers and one, 256 wide. With all engines
the models take 20 GB of memory; on fewer cores or with less memory, name fewer engines
or models.
"""

import gc
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import _common as common
import torch
from datasets import load_dataset
from rich.console import Console
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering

from obert_modifiers.core.quantization.scheme import Scheme, freeze_, quantize_
from obert_modifiers.deploy.bench import show
from obert_modifiers.deploy.bench.cases import Case
from obert_modifiers.deploy.bench.rounds import Effort, Measured, measure
from obert_modifiers.deploy.engines import ENGINES as ENGINE_FILES
from obert_modifiers.deploy.formats.sparse_model import describe
from obert_modifiers.deploy.onnx import export_onnx
from obert_modifiers.embedded import encoder_path, movie_snippets
from obert_modifiers.runtime import file
from obert_modifiers.sizes import MB, gzip_bytes, plain_bytes

BATCH, SEQ, GROUP = 32, 128, 4
ENGINES = ("onnxruntime", "openvino", "sparse", "deepsparse")
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
        sparsity: Share of the encoder's weights that is zero.
    """

    layers: int
    group: int
    int8: bool
    paper: float | None = None
    goal: float | None = None
    sparsity: float = 0.8


MODELS = {
    "dense": Shape(12, 0, False),
    "dense_int8": Shape(12, 0, True),
    "unstructured80": Shape(12, 1, False, 3.38, 3.38),
    "unstructured90": Shape(12, 1, False, sparsity=0.9),
    "block4_int8": Shape(12, GROUP, True, 8.39, 8.0),
    "block4_90_int8": Shape(12, GROUP, True, sparsity=0.9),
    "3layer_dense_int8": Shape(3, 0, True),
    "3layer_block4_int8": Shape(3, GROUP, True, 28.75, 28.0),
    "3layer_block4_90_int8": Shape(3, GROUP, True, sparsity=0.9),
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
            kept = torch.rand(weight.numel() // shape.group, 1)
            kept = kept >= shape.sparsity
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


@dataclass(frozen=True)
class Batch:
    """What is computed at once: sentences, padded to a number of tokens."""

    sentences: int
    tokens: int
    lengths: tuple[int, ...] | None = None  # None: all have that many tokens


def reviews(count: int = BATCH) -> Batch:
    """Take the first validation sentences of the embedded movie reviews."""
    rows = load_dataset("parquet", data_files=str(movie_snippets()["validation"]))
    tokenizer = AutoTokenizer.from_pretrained(encoder_path())
    found = tokenizer(list(rows["train"]["sentence"][:count]))["input_ids"]
    lengths = tuple(len(ids) for ids in found)
    return Batch(count, max(lengths), lengths)


def export_all(
    names: list[str],
    engines: list[str],
    batches: list[Batch],
    folder: Path,
    quick: bool,
) -> tuple[dict[tuple[str, str, int], Path], dict[str, dict[str, float]]]:
    """Write each model for each engine.

    Args:
        names: Of :data:`MODELS`.
        engines: Of :data:`ENGINES`.
        batches: What is measured; DeepSparse has a file for each.
        folder: Where they are written.
        quick: Small models.

    Returns:
        The files by model, engine and number of the batch, and the sizes of the models
        in MB, of the file for the first engine.
    """
    files: dict[tuple[str, str, int], Path] = {}
    sizes = {}
    for name in names:
        model = make(MODELS[name], quick)
        for engine, (n, batch) in product(engines, enumerate(batches)):
            path = folder / f"{name}_{engine}.onnx"
            if engine == "deepsparse":
                path = folder / f"{name}_{engine}_{n}.onnx"
            elif engine == "sparse":
                path = folder / f"{name}.safetensors"
            files[name, engine, n] = path
            if path.exists():
                continue
            if engine == "sparse":
                file.write(path, *describe(model))
            else:
                shape = (batch.sentences, batch.tokens)
                shape = shape if engine == "deepsparse" else None
                export_onnx(model, sample(8), path, engine, shape, integer_bias=True)
        first = [files[name, engines[0], 0]]
        sizes[name] = {
            "mb": plain_bytes(first) / MB,
            "gzip_mb": gzip_bytes(first) / MB,
        }
        print(f"exported {name}: {sizes[name]['gzip_mb']:.1f} MB gzipped", flush=True)
        del model
        gc.collect()
    return files, sizes


def cases_of(
    files: dict[tuple[str, str, int], Path], batches: list[Batch]
) -> list[Case]:
    """List what is measured; dense on ONNX Runtime is the first of each batch.

    Args:
        files: By model, engine and number of the batch.
        batches: What is computed at once.

    Returns:
        A case for each file, and for OpenVINO two, with and without bfloat16.
    """
    cases = []
    for number, batch in enumerate(batches):
        size = (batch.sentences, batch.tokens)
        for (name, engine, n), path in files.items():
            if n != number:
                continue
            one = Case(name, path, engine, *size, lengths=batch.lengths)
            cases.append(one)
            if engine == "openvino":
                cases.append(replace(one, bf16=True))
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
    arguments.add_argument("--batches", default=str(BATCH))
    arguments.add_argument("--reviews", action="store_true")
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--seconds", type=float, default=15.0)
    arguments.add_argument("--cores", type=int, default=None)
    arguments.add_argument("--plot", type=Path, default=None)
    flags = arguments.parse_args()
    engines = [n for n in flags.engines.split(",") if ENGINE_FILES[n].installed]
    for name in set(flags.engines.split(",")) - {*engines}:
        print(f"{name} is not installed and is left out")
    # Three rounds tell that it works.
    effort = Effort(flags.seconds, flags.rounds, 1.0, flags.cores)
    if flags.quick:
        effort = Effort(1.0, 3, 0.2, flags.cores)
    with tempfile.TemporaryDirectory() as folder:
        names = flags.models.split(",")
        batches = [Batch(int(count), SEQ) for count in flags.batches.split(",")]
        batches = [reviews()] if flags.reviews else batches
        files, sizes = export_all(names, engines, batches, Path(folder), flags.quick)
        before = os.getloadavg()[0]
        cases = cases_of(files, batches)
        found = measure(cases, effort, lambda line: print(line, flush=True))
        loads = (before, os.getloadavg()[0])
    for rows in show.tables(found):
        Console(highlight=False).print(rows)
    result = result_of(found, effort, loads, sizes)
    for one in result["results"]:
        print(
            f"{one['batch']}x{one['seq']} {one['model']} on {one['engine']}"
            f"{' bf16' if one['bf16'] else ''}: "
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
