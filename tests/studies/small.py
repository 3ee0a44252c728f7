"""A study of a tiny model: tasks, a table and recipes in a folder."""

from pathlib import Path

import pytest
import yaml

from studies import results, runs, tables
from tests.words import OBERT, TWO_EPOCHS, sentences

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


def write_study(folder: Path, monkeypatch: pytest.MonkeyPatch, **rows: dict) -> Path:
    """Write the study, and let the driver find it; returns the table's file."""
    model = folder / "model"
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
    text = TWO_EPOCHS + OBERT
    for variable, value in (("final_sparsity", "0.8"), ("num_grads", "16")):
        text = text.replace(f"{variable}: {value}", f"{variable}: eval({variable})")
        text = f"{variable}: {value}\n{text}"
    text = f"# a comment\n{text}"
    (folder / "recipes" / "own.yaml").write_text(text, encoding="utf-8")
    path = folder / "tables" / "words.yaml"
    table = TABLE | {"rows": TABLE["rows"] | rows}
    path.write_text(yaml.safe_dump(table, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(tables, "HERE", folder)
    monkeypatch.setattr(results, "RESULTS", folder / "results")
    forget()
    return path


def write_model(folder: Path) -> None:
    """Write the model and the data of the study."""
    import datasets

    from tests import tiny

    tiny.save_model(folder / "model")
    (folder / "data" / "words").mkdir(parents=True)
    for split, count in (("train", 48), ("validation", 24)):
        rows = datasets.Dataset.from_list(sentences(count))
        rows.to_parquet(folder / "data" / "words" / f"{split}.parquet")


def forget() -> None:
    """Forget what was read of files."""
    for known in (tables.tasks, tables.recipe_text, tables.variables_of):
        known.cache_clear()


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Make runs in this process; returns the folders, as they come."""
    from studies import one

    found = []

    def start(folder: Path) -> int:
        found.append(folder)
        one.main(folder)
        return 0

    monkeypatch.setattr(runs, "start_process", start)
    return found
