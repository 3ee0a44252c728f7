"""all-MiniLM-L6-v2 as an embedder, dense and compressed: STS-B, SQuAD retrieval, bytes.

Dense; dense in INT8 by plain post-training quantization (the same grids, ranges from
512 texts, weights as they are); 80 and 90 % in blocks of four with INT8; 3 of the 6
layers with INT8. The others learn from the dense model on paragraphs, sentences of
paragraphs, and questions, without labels.
What is measured is the exported ONNX file on ONNX Runtime: Spearman's correlation on
STS-B's validation pairs, and finding the paragraphs of SQuAD's validation part by their
questions.

    python benchmarks/bench_embeddings.py --json FILE [--seeds 0 1 2]
        [--methods dense ptq 80 90 3layer] [--texts PARAGRAPHS QUESTIONS SENTENCES]
        [--data FOLDER] [--output_dir FOLDER]
    python benchmarks/bench_embeddings.py --quick
    python benchmarks/bench_embeddings.py --table FILE [FILE ...]

FILE has a row a line and is written after each; rows that it holds are not measured
again. A seed is that of the order of texts, dropout, gradient samples and probes;
dense has none. The data sets (stsb, squad, wiki_paragraphs; docs/embeddings.md
names their columns) are looked for as benchmarks/README.md says.
"""

import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _common as common
import _data
import numpy as np
from datasets import load_dataset

from obert_modifiers import embedded, tasks
from obert_modifiers.deploy.evaluate import Request, evaluate_file
from obert_modifiers.deploy.export import export_run
from obert_modifiers.sizes import gzip_bytes

RECIPES = common.ROOT / "recipes"
PRUNED = RECIPES / "minilm-l6_embedding_distil-int8_4block80.yaml"
FEWER = RECIPES / "minilm-l6_embedding_distil-3layer-int8_dense0.yaml"
# No weight moves, as the learning rate is 0: ranges are observed, and that is all.
PTQ = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 5.0}
  - !EmbeddingDistillationModifier {hardness: 1.0}
  - !QATModifier {start_epoch: 0.0, disable_observer_epoch: 4.9, per_channel: True}
"""
# Ranges are moving averages over batches: 320 of 8.
STILL = {"learning_rate": 0, "max_train_samples": 512}
STILL |= {"per_device_train_batch_size": 8}
# Many texts and few epochs: twice as many epochs of half of the layers, which take as
# long.
SHORT = {"num_epochs": 2.0, "pruning_end_epoch": 1.0, "pruning_update_frequency": 0.5}
SHORT |= {"qat_start_epoch": 1.5, "qat_observers_end_epoch": 1.75}
LAYERS = {"num_epochs": 4.0, "qat_start_epoch": 3.5, "qat_observers_end_epoch": 3.75}
# A recipe, its variables, and other flags.
METHODS: dict[str, tuple[str | Path, dict[str, Any], dict[str, Any]] | None] = {
    "dense": None,
    "ptq": (PTQ, {}, STILL),
    "80": (PRUNED, SHORT, {}),
    "90": (PRUNED, SHORT | {"final_sparsity": 0.9}, {}),
    "3layer": (FEWER, LAYERS, {}),
}
# Paragraphs, questions and sentences to learn from, and the most tokens of one.
TEXTS, LENGTH, BATCH = (800, 6000, 10000), 128, 32
QUICK_TEXTS, QUICK_PAIRS = (64, 128, 64), 200
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_FEWEST_WORDS = 4
QUICK = {"num_grads": 64, "pruning_update_frequency": 1.0}
FIGURES = ("stsb_spearman", "squad_ndcg_at_10", "squad_accuracy_at_1", "top10_kept")
FIGURES += ("mb", "gzip_mb", "train_seconds")


def main() -> None:
    """Run what is missing, and print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS)
    parser.add_argument(
        "--texts", type=int, nargs=3, help="how many paragraphs, questions, sentences"
    )
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--output_dir", type=Path, help="keep the runs in this folder")
    parser.add_argument("--table", type=Path, nargs="+", help="print FILES, no runs")
    parser.add_argument(
        "--recipe_args", type=json.loads, default={}, help="for every recipe, as JSON"
    )
    flags = parser.parse_args()
    if flags.table:
        rows = [row for file in flags.table for row in read(file)]
        print("\n".join(table(rows)))
        return
    seeds = flags.seeds[:1] if flags.quick else flags.seeds
    methods = flags.methods or (["dense", "80"] if flags.quick else [*METHODS])
    rows = read(flags.json)
    rows = [row for row in rows if row["asked"] == asked(row["method"], flags)]
    done = {(row["method"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        folder = flags.output_dir or Path(scratch)
        texts = flags.texts or (QUICK_TEXTS if flags.quick else TEXTS)
        source = data_folder(flags.data)
        files = write_data(source, folder / "data", texts, flags.quick)
        for seed in seeds:
            for method in methods:
                own = seed if METHODS[method] else 0
                if (method, own) in done:
                    continue
                done.add((method, own))
                out = folder / f"{method}-seed{own}"
                rows.append(measure(method, own, out, files, flags))
                print(json.dumps(rows[-1]), flush=True)
                if flags.json:
                    with flags.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))


def read(file: Path | None) -> list[dict[str, Any]]:
    """Read the rows of a file.

    Args:
        file: With a row a line; None or a missing one has none.

    Returns:
        The rows.
    """
    if file is None or not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def data_folder(named: Path | None) -> Path:
    """Find the data sets.

    Args:
        named: Their folder, if it is given.

    Returns:
        The folder.
    """
    folder = _data.data_folder(named)
    if not (folder / "stsb").is_dir():
        print(f"data={folder} has no stsb; nothing is measured; name it with --data")
        raise SystemExit(0)
    return folder


def write_data(
    source: Path, folder: Path, texts: Sequence[int], quick: bool
) -> dict[str, Path]:
    """Write the texts to learn from, and the pairs to measure on.

    Args:
        source: Of the data sets.
        folder: Where they are written.
        texts: How many paragraphs, questions and sentences to learn from.
        quick: Write few pairs.

    Returns:
        The files: ``texts``, ``stsb`` and ``squad``.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def rows(name: str, split: str) -> Any:
        file = str(source / name / f"{split}.parquet")
        return load_dataset("parquet", data_files=file, split="train")

    found = []
    paragraphs = list(dict.fromkeys(rows("wiki_paragraphs", "train")["text"]))
    questions = list(dict.fromkeys(rows("squad", "train")["question"]))
    sentences = [
        text
        for paragraph in paragraphs
        for text in _SENTENCE_END.split(paragraph)
        if len(text.split()) >= _FEWEST_WORDS
    ]
    for given, count in zip((paragraphs, questions, sentences), texts, strict=True):
        chosen = np.random.default_rng(0).permutation(len(given))[:count]
        found += [" ".join(given[i].split()) for i in chosen]
    np.random.default_rng(1).shuffle(found)
    (folder / "texts.txt").write_text("\n".join(found) + "\n", encoding="utf-8")
    asked = rows("squad", "validation").select_columns(["question", "context"])
    scored = rows("stsb", "validation")
    if quick:
        asked, scored = (one.select(range(QUICK_PAIRS)) for one in (asked, scored))
    asked.to_json(folder / "squad.json")
    scored.to_json(folder / "stsb.json")
    return {
        "texts": folder / "texts.txt",
        "stsb": folder / "stsb.json",
        "squad": folder / "squad.json",
    }


def measure(
    method: str, seed: int, out: Path, files: dict[str, Path], flags: Any
) -> dict[str, Any]:
    """Make a model and measure its exported file.

    Args:
        method: A name of `METHODS`.
        seed: Of the run.
        out: Where it is kept.
        files: Of `write_data`.
        flags: Of the command line.

    Returns:
        The row.
    """
    started, cpu = time.perf_counter(), common.cpu_seconds()
    dense = embedded.encoder_path()
    row: dict[str, Any] = {"method": method, "seed": seed, "quick": flags.quick}
    row["asked"] = asked(method, flags)
    setup = METHODS[method]
    if setup is None:
        run, file = dense, out / "model.onnx"
        export_run(run, "onnx", file)
    else:
        run, record = out, train(setup, seed, out, files["texts"], flags)
        row |= {k: record[k] for k in ("train_seconds", "steps", "pruning_events")}
        row |= {k: record[k] for k in ("sparsity_encoder", "top10_kept")}
        file = export_run(run, "onnx").path
    for name in ("stsb", "squad"):
        words = ["--validation_file", str(files[name]), "--max_seq_length", "256"]
        words += ["--use_cpu"]
        task = "sentence_embedding"
        figures = evaluate_file(Request(file, task, run=run, words=words))
        kept = {k: v for k, v in figures.items() if isinstance(v, float)}
        row |= {f"{name}_{k}": v for k, v in kept.items() if k != "seconds"}
    row |= {"mb": file.stat().st_size / 1e6, "gzip_mb": gzip_bytes([file]) / 1e6}
    row["file"] = str(file.relative_to(out.parent))
    row["seconds"] = time.perf_counter() - started
    return row | {"cpu_seconds": common.cpu_seconds() - cpu} | common.environment()


def asked(method: str, flags: Any) -> dict[str, Any]:
    """Tell what else a row depends on; rows of other runs are measured again."""
    setup = METHODS[method]
    if setup is None:
        return {"quick": flags.quick}
    texts = flags.texts or (QUICK_TEXTS if flags.quick else TEXTS)
    return {"quick": flags.quick, "texts": [*texts], **_values(setup, flags)}


def train(
    setup: tuple[Any, dict, dict], seed: int, out: Path, texts: Path, flags: Any
) -> dict[str, Any]:
    """Train with a recipe.

    Args:
        setup: Of `METHODS`.
        seed: Of the run.
        out: Its folder.
        texts: The file of texts.
        flags: Of the command line.

    Returns:
        What the run recorded.
    """
    recipe, _, more = setup
    values = _values(setup, flags)
    words = ["--train_file", texts, "--validation_file", texts, "--recipe", recipe]
    words += ["--recipe_args", json.dumps(values)] * bool(values)
    words += ["--output_dir", out]
    words += ["--max_eval_samples", 512, "--eval_strategy", "no"]
    words += ["--max_seq_length", LENGTH, "--per_device_train_batch_size", BATCH]
    words += ["--distill_teacher", "self", "--seed", seed, "--report_to", "none"]
    words += ["--overwrite_output_dir", "--use_cpu", "--bf16", "--disable_tqdm"]
    words += ["--dropout", 0]
    words += [word for name, value in more.items() for word in (f"--{name}", value)]
    return tasks.main("sentence_embedding", [str(word) for word in words])


def _values(setup: tuple[Any, dict, dict], flags: Any) -> dict[str, Any]:
    recipe, given, _ = setup
    own = QUICK if flags.quick and recipe is PRUNED else {}
    return given | own | (flags.recipe_args if recipe is not PTQ else {})


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format mean and spread of each method as Markdown.

    Args:
        rows: The rows.

    Returns:
        The lines; the spread is the sample standard deviation over seeds.
    """
    lines = ["| | seeds | " + " | ".join(FIGURES) + " |"]
    lines.append("|---|---|" + "---|" * len(FIGURES))
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in own if figure in row]
            digits = 1 if figure.endswith(("mb", "seconds")) else 4
            cells.append(common.mean_and_spread(values, digits) if values else "-")
        lines.append(f"| {method} | {len(own)} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
