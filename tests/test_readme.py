"""The README is true: its commands, recipe and code run, in a scaled form."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from transformers import AutoModelForSequenceClassification

from obert_modifiers import cli
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.resources import recipe_names
from obert_modifiers.tasks import TASKS, load
from obert_modifiers.tasks.command_line import parse
from tests import questions, test_report, tiny
from tests.training.toy import each_step, records

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXECUTED_BY_CI = {"make quickstart", "make test"}
TRAINING = 7  # commands in the README that train
INTEGRATIONS = 2
MEASURING = ("sizes", "evaluate", "report", "card")
EXPORTING = (
    "export",
    "export",
    "export",
    "export",
    "bench",
    "bench",
)  # run by tests/deploy
INSTALLING = {
    "pip install torch==2.13.0",
    "pip install -c constraints.txt -e '.[demo]'",
}
# Run by tests/sparseml_cli, in the environment that the first of them makes.
OTHER_STACK = {"make install-sparseml-cli", "obert doctor"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    joined = "".join(blocks("console")).replace("\\\n", " ")
    lines = [" ".join(line.split("#")[0].split()) for line in joined.split("\n")]
    return [line for line in lines if line]


WORDS = [shlex.split(line) for line in commands()]
TRAIN = [words for words in WORDS if "train" in words]
# The run that is resumed, and the command that resumes it.
RESUMED = [words for words in TRAIN if "runs/long" in words]
PLAIN = [words for words in TRAIN if words not in RESUMED]
PLAN = [words for words in WORDS if words[:3] == ["obert", "recipe", "plan"]]
INTEGRATE = [words for words in WORDS if "integrations/" in "".join(words[1:2])]
MEASURE = [words for words in WORDS if words[1:2] and words[1] in MEASURING]


def task_of(words: list[str]) -> str:
    return words[words.index("train") + 1]


def exporting_commands() -> list[list[str]]:
    return [words for words in WORDS if words[1:2] and words[1] in EXPORTING]


def finished(words: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command that ends well."""
    options = {"capture_output": True, "text": True, "timeout": 240}
    done = subprocess.run(words, cwd=folder, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_every_command_is_accounted_for() -> None:
    assert tuple(words[1] for words in exporting_commands()) == EXPORTING
    assert tuple(words[1] for words in MEASURE) == MEASURING
    assert (len(PLAIN), len(RESUMED), len(PLAN)) == (TRAINING, 2, 1)
    assert len(INTEGRATE) == INTEGRATIONS
    assert {task_of(words) for words in TRAIN} == set(TASKS)
    run = [*TRAIN, *PLAN, *INTEGRATE, *MEASURE, *exporting_commands()]
    others = {command for command in commands() if shlex.split(command) not in run}
    theirs = {command for command in others if "obert run" in command}
    assert others - theirs == EXECUTED_BY_CI | INSTALLING | OTHER_STACK
    assert len(theirs) == 1
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in EXECUTED_BY_CI | {"make install-sparseml-cli"}:
        assert f"\n{command.split()[1]}:" in targets


def test_the_recipe_loads_and_the_shipped_ones_are_listed() -> None:
    (recipe,) = blocks("yaml")
    manager = RecipeManager.from_recipe(recipe)
    assert manager.max_epochs == 5.0
    assert len(manager.modifiers) == 4
    assert "(docs/recipes.md)" in README
    table = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `recipes/(\S+)\.yaml` \|", table, re.MULTILINE)
    assert sorted(listed) == recipe_names()
    (papers,) = re.findall(r"ship are (\d+) setups of the papers", README)
    assert int(papers) == len(recipe_names()) - 7


def test_the_python_runs() -> None:
    code, engine = blocks("python")
    assert "SparseEncoder" in engine  # run by tests/deploy
    finished([sys.executable, "-W", "ignore", "-c", code])


def test_the_plan_is_printed_and_drawn(tmp_path: Path, monkeypatch) -> None:
    (words,) = PLAN
    model = tiny.save_model(tmp_path / "model")
    words = [str(model) if word == "path/to/model" else word for word in words]
    recipe = words.index(next(word for word in words if word.endswith(".yaml")))
    words[recipe] = str(ROOT / words[recipe])
    monkeypatch.chdir(tmp_path)
    assert cli.main(words[1:]) == 0
    assert (tmp_path / "plan.png").is_file()


def test_runs_are_measured_as_it_says(tmp_path: Path, monkeypatch, capsys) -> None:
    for name, pruned in (("dense", ()), ("mine", test_report.EVENTS)):
        command = "obert train text_classification --max_eval_samples 50".split()
        folder = tmp_path / "runs" / name
        test_report.make_run(folder, pruned, command=command)
        tiny.save_model(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    for words in MEASURE:
        assert cli.main(words[1:]) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "report" / "report.html").is_file()
    record = json.loads((tmp_path / "accuracy.json").read_text(encoding="utf-8"))
    assert record["samples"] == 50


def write_data(task: str, folder: Path) -> Path:
    """Write sentences as the task reads them."""
    if task == "question_answering":
        return questions.write_document(folder / "data.json", questions.rows(48))
    rows = tiny.sentences(48)
    texts = [row["sentence"] for row in rows]
    if task == "masked_language_modeling":
        (folder / "data.txt").write_text("\n".join(texts), encoding="utf-8")
        return folder / "data.txt"
    if task == "token_classification":
        lists = [text.split() for text in texts]
        rows = [
            {"tokens": words, "ner_tags": [int(word in tiny.GOOD) for word in words]}
            for words in lists
        ]
    return tiny.write_rows(folder / "data.json", rows)


QUICK = (0, 3)  # one of classification, one of another task; the others run in test-all


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow])
        for n in range(TRAINING)
    ],
)
def test_training_commands_run_scaled_down(number: int, tmp_path: Path) -> None:
    """The same command with a tiny model, a tiny data set and a short recipe."""
    words = PLAIN[number]
    task = task_of(words)
    split = words.index(task) + 1
    launcher, flags = words[:split], words[split:]
    parse(flags, "obert", load(task).flags)  # each flag of the README is known
    small = tiny.flags(tmp_path, rows=write_data(task, tmp_path))
    small["recipe"].write_text("final_sparsity: 0.8\n" + tiny.RECIPE, encoding="utf-8")
    if task == "sentence_embedding":  # which learns from the teacher only
        with small["recipe"].open("a", encoding="utf-8") as file:
            file.write("  - !EmbeddingDistillationModifier\n")
        small["distill_teacher"] = "self"
    small |= {"output_dir": tmp_path / "out", "per_device_train_batch_size": 4}
    if task == "question_answering":
        small["doc_stride"] = 8  # the tiny model reads 32 tokens
    left_out = {"distill_teacher", "recipe_args", "dataset_name", "validation_ratio"}
    left_out = {f"--{name}" for name in (*left_out, *small)}
    kept, taken = [], True
    for word in flags:
        # The value of a flag goes where the flag goes.
        taken = word not in left_out if word.startswith("--") else taken
        kept += [word] if taken else []
    launcher = [str(Path(sys.executable).parent / launcher[0]), *launcher[1:]]
    if "torchrun" in launcher[0]:
        launcher.insert(1, "--standalone")
    done = finished([*launcher, *kept, *tiny.words_of(small), "--use_cpu"])
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert done.stdout.count("pruned at epoch") == 3
    record = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert record["machine"]["processes"] == (1 if words[0] == "obert" else 2)


@pytest.mark.parametrize("number", range(INTEGRATIONS))
def test_integrations_run_scaled_down(number: int, tmp_path: Path) -> None:
    _, script, *flags = INTEGRATE[number]
    rows = datasets.Dataset.from_list(tiny.sentences(48))
    rows.to_parquet(tmp_path / "train.parquet")
    small = tiny.flags(tmp_path, rows=tmp_path / "train.parquet")
    values = {
        "recipes/quickstart.yaml": small["recipe"],
        flags[flags.index("--output_dir") + 1]: tmp_path / "out",
    }
    flags = [str(values.get(word, word)) for word in flags]
    files = {"model": small["model_name_or_path"], "train_file": small["train_file"]}
    command = [sys.executable, str(ROOT / script), *flags, *tiny.words_of(files)]
    done = finished(command, tmp_path)
    assert done.stdout.splitlines()[-1] == "sparsity 0.8000"
    out = tmp_path / "out"
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert tiny.sparsity(model) == pytest.approx(0.8, abs=1e-4)
    if "transformers" in script:
        assert (out / "recipe.yaml").is_file()


def test_a_killed_run_is_resumed_as_it_says(tmp_path: Path) -> None:
    """The two commands with a tiny model, in one folder."""
    start, resume = RESUMED
    assert resume == [*start, "--resume_from_checkpoint", "last"]
    more = tiny.flags(tmp_path, 48) | {"per_device_train_batch_size": 4}
    values = {
        "recipes/quickstart.yaml": str(more.pop("recipe")),
        "runs/long": str(tmp_path / "out"),
        "100": "5",
    }
    pairs = tiny.words_of(more)

    def run(words: list[str]) -> int:
        small = [values.get(word, word) for word in words[1:]]
        return cli.main([*small, *pairs, "--use_cpu"])

    def killed(stepper, step) -> bool:
        if stepper.steps == 13:
            raise KeyboardInterrupt
        return step()

    with each_step(killed):
        assert run(start) == 130
    assert run(start) == 2  # the folder is not empty
    assert run(resume) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    steps = [record["step"] for record in records(tmp_path / "out", "step")]
    assert steps == [10, 20, 24]
    folders = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert folders == ["checkpoint-15", "checkpoint-20"]
