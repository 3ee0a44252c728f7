"""The ``obert`` command: light, clean in its errors, plain in a pipe."""

import dataclasses
import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console
from transformers import TrainingArguments

import obert_modifiers
from obert_modifiers import cli, embedded
from obert_modifiers.cli.progress import LogLines, Reporter, pruning_line
from obert_modifiers.tasks import TASKS
from obert_modifiers.tasks.command_line import _transformers_flags
from tests import tiny
from tests.hosts import TORCHRUN
from tests.test_report import event

MEASURED = ("evaluate", "export", "bench", "sizes")
EVENT = event(0.5, 0.0, 0.6, skipped_gradients=0)
STEP = {"epoch": 0.5, "loss": 0.5, "learning_rate": 5e-5, "sparsity": 0.6}


def call(capsys, words: str) -> tuple[int, str, str]:
    code = cli.main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


def process(words: list, *launcher: str, **environment):
    return subprocess.run(
        [sys.executable, *launcher, "-m", "obert_modifiers.cli", *map(str, words)],
        cwd=Path(obert_modifiers.__file__).parent.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def training_words(folder: Path, samples: int, **flags) -> list[str]:
    """Make a tiny model, data and recipe in a folder, and the words to train with."""
    (folder / "recipe.yaml").write_text(tiny.RECIPE)
    data = tiny.write_rows(folder / "data.json", tiny.sentences(samples))
    flags = {
        "model_name_or_path": tiny.save_model(folder / "model"),
        "train_file": data,
        "validation_file": data,
        "recipe": folder / "recipe.yaml",
        "output_dir": folder / "out",
        "cache_dir": folder / "cache",
        **flags,
    }
    words = [f"--{name}={value}" for name, value in flags.items()]
    return ["train", "text_classification", *words]


HELP = [
    "--version",
    *(f"{path} --help".strip() for path in ("", *cli.GROUPS, *cli.COMMANDS)),
]
# What is wrong, and what is said about it, before anything heavy is imported.
ERRORS = {
    "trian": "No such command 'trian'",
    "train text_clasification": "No such command 'text_clasification'",
    "quickstart --sed 1": "No such option: --sed",
    "quickstart --only bert": "only=bert names no run",
    "recipe plan a b": "unexpected extra argument",
    "recipe plan . --batch-size 4": "--batch-size=4 has no --train-samples",
    "recipe plan . --model nowhere": "model=nowhere has no config.json",
    "recipe check . --replace=theirs": "'theirs' is not one of 'same', 'ours'",
    "recipe convert . .": "new=. exists",
    "evaluate --seed 1": "model=--seed is a flag",
    **{f"{name} nowhere": "is not there" for name in MEASURED},
    "export . --format tflite": "format=tflite is unknown; expected one of onnx",
    "export . --shape 32": "--shape=32 is no batch size and sequence length",
    "bench . --batch 2,x": "--batch=2,x is no list of sizes",
    "bench . --seconds 0": "--seconds=0.0 leaves nothing to measure",
    "bench . --rounds 0": "Invalid value for '--rounds'",
    "report nowhere": "run=nowhere has no metrics.json",
    "report a b --output_dir c": "run=a has no metrics.json",
    "card nowhere": "run=nowhere has no metrics.json",
    **{f"train {task} --recpie r": "did you mean --recipe?" for task in TASKS},
    "train text_classification --optim sgd": "the optimizer is AdamW",
    "train text_classification --fp16 --bf16": "--fp16 and --bf16 exclude",
    "train text_classification --replace theirs": "theirs",
    "train token_classification --save_steps 0": "--save_steps=0 is not positive",
    "train token_classification --label_name O": "did you mean --label_names?",
    "train token_classification --label_all_tokens": "not supported here yet",
    "train token_classification --task_name ner": "--task_name is",
    "train masked_language_modeling --line_by_lines": "mean --line_by_line?",
    "train masked_language_modeling --label_column_name a": "is unknown",
    "train masked_language_modeling --mlm_probability 2": "outside (0, 1)",
    "train question_answering --doc_strides 1": "did you mean --doc_stride?",
    "train question_answering --task_name squad": "--task_name is",
    "train question_answering --do_eval": "--dataset_name is missing",
}
LATER = {
    "train masked_language_modeling --do_predict": "nothing to predict",
    "train text_classification --recipe zoo:r": "zoo:r",
}
HEAVY = {"torch", "sparseml", "accelerate", "datasets", "onnx", "numba", "matplotlib"}

HEAVIER = HEAVY | {"transformers"}


def test_help_and_errors_of_usage_load_neither_torch_nor_sparseml():
    assert (len(HELP), len(ERRORS)) == (21, 40)
    words = sorted([*HELP, *ERRORS], key=lambda words: words.startswith("train"))
    code = (
        "import sys; from obert_modifiers import cli\n"
        f"for words in {words}:\n"
        "    code = cli.main(words.split())\n"
        f"    assert code == (0 if words in {HELP} else 2), words\n"
        f"    heavy = {HEAVY} if words[:5] == 'train' else {HEAVIER}\n"
        "    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 60
    assert done.stderr.count("obert: ") == len(ERRORS)
    assert f"obert_modifiers {obert_modifiers.__version__}" in done.stdout
    assert "--mlm_probability" in done.stdout and "--doc_stride" in done.stdout


@pytest.mark.parametrize(("words", "message"), (ERRORS | LATER).items())
def test_a_users_error_is_one_message(capsys, words, message):
    code, _, err = call(capsys, words)
    assert code == 2
    assert err.startswith("obert: ") and message in err
    assert "Traceback" not in err and len(err.splitlines()) == 1


def test_the_flags_of_transformers_are_known_without_its_import():
    fields = {one.name for one in dataclasses.fields(TrainingArguments)}
    assert _transformers_flags() == fields


def test_debug_shows_where_it_comes_from(capsys, monkeypatch):
    code, _, err = call(capsys, "--debug report nowhere")
    assert code == 2 and "Traceback" in err
    monkeypatch.setenv("OBERT_DEBUG", "1")
    assert "Traceback" in call(capsys, "report nowhere")[2]


def test_a_fault_of_ours_keeps_its_traceback(capsys, monkeypatch, tmp_path):
    def fail(*args):
        int("not a number")  # a ValueError, but nobody raised it on purpose
        json.loads("{")

    monkeypatch.setattr("obert_modifiers.report.write.write_report", fail)
    for name in ("metrics.json", "metrics.jsonl"):
        (tmp_path / name).touch()
    code, _, err = call(capsys, f"report {tmp_path}")
    assert code == 1 and "Traceback" in err


def test_the_help_of_run_needs_no_sparseml(capsys, monkeypatch):
    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_installed)
    code, out, _ = call(capsys, "run --help")
    assert code == 0 and "--replace=ours" in out
    assert "sparseml is not installed" in out
    code, _, err = call(capsys, "run sparseml.onnxruntime.benchmark")
    assert code == 2 and "sparseml is not installed" in err


@pytest.mark.parametrize("command", ["recipe check", "recipe plan"])
def test_the_help_says_how_variables_are_given(capsys, command):
    assert "name=value" in call(capsys, f"{command} --help")[1]


TASK_FLAGS = {
    "question_answering": {"--doc_stride", "--version_2_with_negative"},
    "text_classification": {"--task_name", "--input_column_names"},
    "token_classification": {"--label_column_name", "--label_names"},
    "sentence_embedding": {"--train_on", "--pair_column_names", "--dense_model"},
    "masked_language_modeling": {"--line_by_line", "--mlm_probability"},
}


@pytest.mark.parametrize("task", TASKS)
def test_the_flags_are_listed(capsys, task):
    code, out, _ = call(capsys, f"train {task} --help")
    assert code == 0
    listed = set(re.findall(r"--\w+", out))
    assert {"--recipe", "--distill_teacher", "--no_cuda", "--eval_on_test"} <= listed
    assert TASK_FLAGS[task] <= listed
    for other in set(TASK_FLAGS) - {task}:
        assert not TASK_FLAGS[other] <= listed
    assert f"runs/{task}" in out and "name=value" in out
    assert task in call(capsys, "train --help")[1]


def test_recipe_check_of_several_files(capsys, tmp_path):
    texts = {
        "one": tiny.RECIPE.replace("0.8", "80").replace("num_grads", "num_grad"),
        "two": tiny.RECIPE + "  - !LogitDistillationModifier {hardness: 0.5}\n",
        "three": tiny.RECIPE.replace("end_epoch: 1.5", "end_epoch: 2.0"),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    files = " ".join(str(tmp_path / f"{name}.yaml") for name in texts)
    code, out, err = call(capsys, f"recipe check {files} nowhere.yaml")
    assert code == 1
    places = [line.split(": ")[0].rpartition("/")[2] for line in err.splitlines()]
    assert places == ["one.yaml:13", "one.yaml:17", "three.yaml:15", "nowhere.yaml:1"]
    assert ":13: OBERTPruningModifier.final_sparsity: " in err
    assert "num_grad is not a key of OBERTPruningModifier" in err
    assert err.splitlines()[1].endswith("write num_grads")
    first, second = out.splitlines()
    assert first.startswith(str(tmp_path / "two.yaml"))
    assert "no problems; 4 modifiers" in first
    assert second.startswith("note: ") and "names no teacher" in second
    code, out, err = call(capsys, f"recipe check {tmp_path / 'two.yaml'}")
    assert (code, err) == (0, "")


def test_recipe_plan(capsys, tmp_path):
    recipe, drawn = tmp_path / "recipe.yaml", tmp_path / "plan.png"
    recipe.write_text(tiny.RECIPE)
    model = tiny.save_model(tmp_path / "model")
    (model / "model.safetensors").unlink()  # the weights are not read
    capsys.readouterr()
    words = f"recipe plan {recipe} --model {model} --plot {drawn}"
    code, out, err = call(capsys, f"{words} --train-samples 50 --batch-size 8")
    assert (code, err) == (0, "")
    for part in (
        "2 epochs of 7 optimizer steps, 14 in all; 3 pruning events",
        "0.5 to 1",
        "5.0e-03 to ",
        "80.0 %",
        "3 pruning events from epoch 0.5714 to 1.571, 56.0 % to 80.0 %",
        "16 gradients for an event, 48 in all, each of a sample",
        "Fisher state 0.00 GiB (float64)",
        "13,107 of 16,384 weights are zero in 12 parameters; how many in each is",
        "inverse, selection and update (timed on 131,072 weights), on one process",
    ):
        assert part in out
    timed = r"passes \(timed on \d+ random samples? of 32 tokens; shorter texts take"
    assert re.search(timed, out)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    recipe.write_text(
        tiny.RECIPE.replace("num_grads: 16", "global_sparsity: False")
        + "  - !LogitDistillationModifier {hardness: 0.5}\n"
    )
    code, out, err = call(capsys, f"{words} --no-timing")
    assert code == 0 and "820" not in out and "estimated" not in out
    assert re.search(r"819\W+79.98 %", out) and "hardness 0.5, temperature 2" in out
    more = "num_grads: 16\n      first_recomputations: 3"
    recipe.write_text(tiny.RECIPE.replace("num_grads: 16", more))
    words = f"recipe plan {recipe} --train-samples 50 --batch-size 8"
    code, out, err = call(capsys, words)
    assert "16 gradients for an event and 48 for the first, 80 in all, each" in out


def test_recipe_plan_says_when_it_quantizes(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    keys = "{start_epoch: 1.5, disable_observer_epoch: 1.75}"
    recipe.write_text(f"{tiny.RECIPE}  - !QATModifier {keys}\n")
    code, out, err = call(capsys, f"recipe plan {recipe}")
    rows = [
        line.split("│") for line in out.splitlines() if " to " in line and "│" in line
    ]
    found = {cells[1].strip(): cells[-2].strip() for cells in rows}
    assert (code, err) == (0, "") and "also" not in out
    assert found == {
        "0 to 0.5": "off",
        "0.5 to 1": "off",
        "1 to 1.5": "off",
        "1.5 to 1.75": "on, ranges follow",
        "1.75 to 2": "on, ranges fixed",
    }


BAD = tiny.RECIPE.replace("final_sparsity: 0.8", "final_sparsity: 80")
TWICE = tiny.RECIPE + (
    "  - !GMPStarPruningModifier {final_sparsity: 0.9, start_epoch: 1.0, "
    r"end_epoch: 1.5, params: ['re:.*layer\.0.*query.weight']}"
)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (BAD, "", "recipe.yaml:13: OBERTPruningModifier.final_sparsity: "),
        (tiny.RECIPE, "--recipe_args x=1", "x is not a variable of this recipe"),
        (TWICE, "--model {model}", "is pruned by OBERTPruningModifier on line 11"),
    ],
)
def test_recipe_plan_refuses(capsys, tmp_path, text, flags, message):
    recipe, model = tmp_path / "recipe.yaml", tiny.save_model(tmp_path / "model")
    recipe.write_text(text)
    capsys.readouterr()
    code, out, err = call(capsys, f"recipe plan {recipe} {flags.format(model=model)}")
    assert (code, out) == (1, "") and message in err


def test_training_in_a_pipe_and_its_report(tmp_path):
    done = process(training_words(tmp_path, 32))
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", done.stdout)
    pruned = [x for x in done.stdout.splitlines() if x.startswith("pruned at epoch")]
    assert len(pruned) == 3
    assert re.fullmatch(
        r"pruned at epoch 0\.50 \(step 2\): sparsity 0\.00% -> 50\.00%, predicted loss "
        r"increase \S+, \d+\.\d s, peak memory \d+\.\d\d GB \[OBERTPruningModifier\]",
        pruned[0],
    )
    assert "The recipe sets the number of epochs" in done.stdout
    assert "done in" in done.stdout and "sparsity 0.8000" in done.stdout
    assert "pkg_resources" not in done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    again = process(["report", tmp_path / "out"])
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "report.html").read_text() == page


@pytest.mark.slow
def test_two_processes_write_one_result(tmp_path):
    words = training_words(tmp_path, 36, per_device_train_batch_size=3)
    out = tmp_path / "out"
    done = process([*words, "--use_cpu"], *TORCHRUN, "--nproc_per_node=2")
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "metrics.json").read_text())
    assert record["machine"]["processes"] == 2
    # 36 samples in batches of 2 x 3, for 2 epochs.
    assert record["steps"] == 12 and record["samples"] == 36
    assert record["sparsity"] == 13107 / 16384
    assert done.stdout.count("pruned at epoch") == 3
    assert done.stdout.count("done in") == 1 and (out / "report.html").is_file()


def test_the_other_processes_are_quiet(tmp_path):
    done = process(
        ["train", "text_classification", "--output_dir", Path(__file__)], RANK="1"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("obert: [process 1] --output_dir=")


def test_plain_lines_come_now_and_then():
    stream = io.StringIO()
    reporter = Reporter(Console(file=stream, width=40))
    reporter.start(100)
    for step in range(1, 101):
        reporter.step(STEP | {"step": step})
    reporter.prune(EVENT)
    reporter.eval({"epoch": 1.0, "accuracy": 0.8, "loss": 0.4, "step": 10})
    reporter.message("[bold] is no markup")
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20 + 1 + 3
    assert lines[0] == (
        "step 1/100  epoch 0.50  loss 0.5000  lr 5.00e-05  sparsity 60.00%"
    )
    assert lines[-4].startswith("step 100/100")
    assert lines[-3] == pruning_line(EVENT)
    assert lines[-2] == "validation at epoch 1.00: accuracy 0.8000, loss 0.4000"
    assert lines[-1] == "[bold] is no markup"


def test_the_bar_shows_where_training_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    reporter = Reporter(console)
    for _ in range(2):  # a reporter serves several runs
        reporter.start(10)
        reporter.step(STEP | {"step": 5})
        reporter.prune(EVENT)
        reporter.step(STEP | {"step": 10})
        reporter.close()
        reporter.close()
    shown = console.file.getvalue()
    for part in ("10/10", "lr 5.00e-05", "sparsity 60.00%", "predicted loss increase"):
        assert part in shown
    plain = Reporter(console, bar=False)
    console.file.truncate(0)
    plain.start(10)
    plain.step(STEP | {"step": 5})
    assert "step 5/10" in console.file.getvalue()


def test_magnitude_pruning_predicts_nothing():
    assert "predicted" not in pruning_line(EVENT | {"predicted_loss_increase": None})
    assert "3 gradients skipped" in pruning_line(EVENT | {"skipped_gradients": 3})


def test_the_log_goes_through_the_reporter():
    stream = io.StringIO()
    handler = LogLines(Reporter(Console(file=stream)))
    for level, text in ((logging.INFO, "news"), (logging.WARNING, "take care")):
        handler.handle(logging.LogRecord("x", level, "", 0, text, (), None))
    assert stream.getvalue() == "news\nwarning: take care\n"


def test_the_embedded_encoder_is_found_without_importing_it(monkeypatch):
    assert (embedded.encoder_path() / "model.safetensors").is_file()
    assert embedded.ENCODER_PACKAGE not in sys.modules
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install obert-modifiers\[demo\]"):
        embedded.encoder_path()


def test_missing_embedded_data_is_said(monkeypatch, tmp_path):
    assert all(path.is_file() for path in embedded.movie_snippets().values())
    monkeypatch.setattr(embedded, "_HERE", tmp_path)
    with pytest.raises(FileNotFoundError, match="install the package again"):
        embedded.movie_snippets()
