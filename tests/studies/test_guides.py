"""The guides are true: their commands run, in order, with a tiny model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from obert_modifiers import cli
from obert_modifiers.resources import recipe_names, recipe_path
from tests import tiny

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
COMMANDS = {"one_shot": 4, "gradual": 4, "compound": 7, "transfer": 4}
COMMANDS |= {"from_sparseml": 5}
SLOW = ("compound", "transfer", "gradual")
# Numbers of recipes that a tiny data set is too small for.
SMALLER = {"num_grads": 8, "grad_batch_size": 2, "fisher_block_size": 8}
LAYERS = {"compound": 6}


def blocks(guide: str, language: str) -> list[str]:
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(guide: str) -> list[list[str]]:
    joined = "".join(blocks(guide, "console")).replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines() if line.strip()]


def smaller(text: str) -> str:
    """Lower the numbers of a recipe."""
    for name, number in SMALLER.items():
        text = re.sub(rf"^(\s*{name}:) \d+$", rf"\1 {number}", text, flags=re.MULTILINE)
    return text


def write_files(guide: str, folder: Path) -> None:
    """Write what the guide's commands read."""
    rows = tiny.sentences(64)
    lines = ["sentence,label", *(f"{row['sentence']},{row['label']}" for row in rows)]
    for name in ("train", "validation"):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = [row["sentence"] for row in rows]
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    layers = LAYERS.get(guide, 2)
    tiny.save_model(folder / "path" / "or" / "hub-id", num_hidden_layers=layers)
    (folder / "recipes").mkdir()
    for name in recipe_names():
        text = recipe_path(name).read_text(encoding="utf-8")
        (folder / "recipes" / f"{name}.yaml").write_text(smaller(text), "utf-8")
    name = {"one_shot": "one_shot", "from_sparseml": "old"}.get(guide)
    for text in blocks(guide, "yaml"):
        (folder / f"{name}.yaml").write_text(smaller(text), encoding="utf-8")


def test_the_guides_are_these() -> None:
    assert {path.stem for path in GUIDES.glob("*.md")} - {"README"} == set(COMMANDS)
    index = (GUIDES / "README.md").read_text(encoding="utf-8")
    for guide, count in COMMANDS.items():
        assert len(commands(guide)) == count and f"({guide}.md)" in index
        assert len((GUIDES / f"{guide}.md").read_text("utf-8").splitlines()) < 60
        assert len(blocks(guide, "yaml")) == (guide in ("one_shot", "from_sparseml"))


@pytest.mark.parametrize(
    "guide", [pytest.param(g, marks=[pytest.mark.slow] * (g in SLOW)) for g in COMMANDS]
)
def test_its_commands_run(guide: str, tmp_path: Path, monkeypatch, capsys) -> None:
    write_files(guide, tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands(guide):
        assert words[0] == "obert"
        small = {"train": ["--use_cpu"], "bench": ["--seconds", "0.1"]}
        more = small.get(words[1], [])
        assert cli.main([*words[1:], *more]) == 0, capsys.readouterr().err
    runs = [path.parent for path in tmp_path.glob("runs/*/metrics.json")]
    figures = {
        run.name: json.loads((run / "metrics.json").read_text("utf-8")) for run in runs
    }
    wanted = {"one-shot": 0.7, "pruned": 0.9, "compound": 0.8, "transferred": 0.9}
    wanted |= {"replaced": 0.8}
    (name,) = set(wanted) & set(figures)
    kind = "sparsity" if guide == "from_sparseml" else "sparsity_encoder"
    assert figures[name][kind] == pytest.approx(wanted[name], abs=2e-3)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    """All cells in order, with few sentences."""
    book = json.loads((GUIDES / "one_shot.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == []  # figures are those of whoever runs it
        source = "".join(cell["source"])
        source = source.replace("SENTENCES = 2000", "SENTENCES = 128")
        source = source.replace("num_grads: 256", "num_grads: 16")
        exec(compile(source, "one_shot.ipynb", "exec"), names)
    for run in ("obert", "magnitude"):
        assert names[run]["sparsity_encoder"] == pytest.approx(0.7, abs=1e-4)
    assert len(capsys.readouterr().out.splitlines()) >= 3
