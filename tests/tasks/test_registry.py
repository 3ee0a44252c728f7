"""The registry of tasks: the task that CONTRIBUTING.md shows, in every command."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from obert_modifiers import tasks
from obert_modifiers.core.distillation import IGNORED_LABEL
from obert_modifiers.tasks.task import IGNORED
from tests import tiny
from tests.tasks.inputs import words_of

ROOT = Path(__file__).parents[2]
# Adds the task as a file and a line would, and runs commands one after the other.
SCRIPT = """
import json, sys
from obert_modifiers import tasks
folder, lines, commands = json.loads(sys.argv[1])
tasks.__path__.append(folder)
tasks.TASKS |= lines
from obert_modifiers import cli
for words in commands:
    code = cli.main(words)
    assert code == 0, (words, code)
"""


def shown() -> tuple[str, dict[str, str]]:
    """Return the file of the task that CONTRIBUTING.md shows, and its line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("\n## A new task\n")[2].partition("\n## ")[0]
    source, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, dict[str, str]] = {}
    exec(line, names)
    return source, names["TASKS"]


def rows(count: int, seed: int) -> list[dict]:
    """Make pairs: what follows a good word is good, too."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        pair = draw.choices((tiny.GOOD, tiny.BAD), k=2)
        first, after = (" ".join(draw.choices(words, k=3)) for words in pair)
        follows = int(pair[0] is pair[1])
        made.append({"first": first, "next": after, "follows": follows})
    return made


def test_the_task_that_is_shown_trains_and_is_evaluated(small, tmp_path) -> None:
    source, lines = shown()
    [name] = lines
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    run = tmp_path / "run"
    words = words_of(
        train_file=tiny.write_rows(tmp_path / "train.json", rows(64, 0)),
        validation_file=tiny.write_rows(tmp_path / "other.json", rows(24, 1)),
        second_column_name="next",
        cache_dir=tmp_path / "cache",
        model_name_or_path=small.model,
        recipe=small.recipe,
        output_dir=run,
    )
    commands = [
        ["train", "--help"],
        ["train", name, "--help"],
        ["train", name, *words, "--use_cpu"],
        ["evaluate", str(run), "--json", str(tmp_path / "figures.json"), "--use_cpu"],
    ]
    arguments = json.dumps([str(tmp_path), lines, commands])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines[name][:30] in done.stdout and "--second_column_name" in done.stdout
    record = json.loads((run / "metrics.json").read_text())
    assert record["task"] == name and record["samples"] == 24
    assert record["sparsity"] == 13107 / 16384
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["task"] == name
    assert figures["accuracy"] == record["accuracy"]
    assert figures["loss"] == pytest.approx(record["loss"], rel=1e-5)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_line_has_its_file(name) -> None:
    task = tasks.load(name)
    assert task.name == name
    own = {"sentence_embedding": "EmbeddingModel"}
    assert task.model_class.__name__ == own.get(name, f"AutoModel{task.head}")
    assert task.flags.__name__ != "DataSetArguments"


def test_the_label_without_a_loss_is_the_same_everywhere() -> None:
    assert IGNORED == IGNORED_LABEL
