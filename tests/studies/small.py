"""A study of a tiny model: tasks, a table and recipes in a folder."""

from pathlib import Path

import datasets
import pytest
import yaml

from studies import one, results, runs, tables
from tests import tiny

TABLE = {
    "title": "Tiny",
    "about": "A tiny model.",
    "small": {"tasks": ["words"], "start": "dense", "teacher": "dense"},
    "rows": {
        "dense": {"seeds": 2, "small": {"start": "dense"}},
        "pruned": {
            "grid": {"final_sparsity": [0.5, 0.8]},
            "seeds": 2,
            "small": {"recipe": "recipes/own.yaml", "minutes": 0.1},
        },
    },
    "claims": [
        {"says": "pruned is as good", "of": "none", "left": "pruned 0.5",
         "right": "dense", "margin": -0.5, "seeds": 1},
    ],
}  # fmt: skip


def write_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the study, and let the driver find it; returns the table's file."""
    model = tiny.save_model(folder / "model")
    for split, count in (("train", 48), ("validation", 24)):
        (folder / "data" / "words").mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list(tiny.sentences(count))
        rows.to_parquet(folder / "data" / "words" / f"{split}.parquet")
    dense = {"model_name_or_path": str(model), "num_train_epochs": 1}
    task = {
        "task": "text_classification",
        "metric": "accuracy",
        "train": {"file": "words/train", "rows": 40},
        "validation": {"file": "words/validation"},
        "flags": {"per_device_train_batch_size": 8, "use_cpu": True},
        "dense": dense,
    }
    tasks = {"small": {"words": task}, "paper": {}}
    (folder / "tasks.yaml").write_text(yaml.safe_dump(tasks), encoding="utf-8")
    for name in ("recipes", "tables"):
        (folder / name).mkdir()
    text = "# a comment\nfinal_sparsity: 0.8\nnum_grads: 16\n\n" + tiny.RECIPE.replace(
        "final_sparsity: 0.8", "final_sparsity: eval(final_sparsity)"
    ).replace("num_grads: 16", "num_grads: eval(num_grads)")
    (folder / "recipes" / "own.yaml").write_text(text, encoding="utf-8")
    path = folder / "tables" / "words.yaml"
    path.write_text(yaml.safe_dump(TABLE, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(tables, "HERE", folder)
    monkeypatch.setattr(results, "RESULTS", folder / "results")
    forget()
    return path


def forget() -> None:
    """Forget what was read of files."""
    for known in (tables.tasks, tables.recipe_text, tables.variables_of):
        known.cache_clear()


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Make runs in this process; returns the folders, as they come."""
    found = []

    def start(folder: Path) -> int:
        found.append(folder)
        one.main(folder)
        return 0

    monkeypatch.setattr(runs, "start_process", start)
    return found
