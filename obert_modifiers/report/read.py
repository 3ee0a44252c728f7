"""Read what a run left in its folder; light until a recipe's plan is asked for."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

_FILES = ("metrics.json", "metrics.jsonl")


@dataclass(frozen=True)
class Run:
    """A run as its files tell it."""

    name: str
    folder: Path
    record: dict[str, Any]  # metrics.json
    # Lines of metrics.jsonl.
    steps: list[dict[str, Any]] = field(default_factory=list)
    prunes: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    recipe: str = ""  # as it was run

    @property
    def metric(self) -> str:
        """The figure that the report follows: the first of the task's headline."""
        names = self.record.get("headline", ("accuracy", "pearson"))
        return next((name for name in names if name in self.record), names[0])

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Zeros of each prunable parameter, counted from the saved file."""
        return self.record.get("layers", [])

    @property
    def end(self) -> float:
        """The epoch of the last step."""
        return max((line["epoch"] for line in self.steps), default=0.0)

    @cached_property
    def planned(self) -> list[tuple[float, float]]:
        """Epoch and target of each pruning event that the recipe plans.

        Empty where there are several targets, or the recipe is not understood here,
        such as one of a newer version.
        """
        if not self.recipe or not self.prunes:
            return []
        from obert_modifiers.recipe import load_recipe
        from obert_modifiers.recipe.plan import plan_recipe
        from obert_modifiers.recipe_text.problems import RecipeError

        last = self.steps[-1] if self.end else None
        steps = last and round(last["step"] / last["epoch"])
        try:
            plan = plan_recipe(load_recipe(self.recipe), steps_per_epoch=steps)
        except (RecipeError, ValueError):
            return []
        if [len(pruning.goals) for pruning in plan.pruning] != [1]:
            return []
        events = plan.pruning[0].events or ()
        targets = [(event.epoch, event.sparsities[0]) for event in events]
        return [(epoch, target) for epoch, target in targets if target is not None]

    def sparsity_curve(self) -> tuple[list[float], list[float]]:
        """Return epochs and sparsities from 0 to the end, to be joined by steps."""
        # An event at epoch 0.5 comes after the step that ended there was logged.
        logged = [line for line in self.steps if "sparsity" in line]
        points = [(0.0, 0, 0.0)]
        points += [(line["epoch"], 0, line["sparsity"]) for line in logged]
        points += [(line["epoch"], 1, line["sparsity_after"]) for line in self.prunes]
        points.sort(key=lambda point: point[:2])
        points.append((max(self.end, points[-1][0]), 2, points[-1][2]))
        return [point[0] for point in points], [point[2] for point in points]


def check_run(folder: Path) -> None:
    """Raise FileNotFoundError if a folder holds no finished run."""
    for name in _FILES:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"run={folder} has no {name}; expected the output folder of a "
                "finished `obert train`; check the path"
            )


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run's files; its name is the folder's unless given."""
    check_run(folder)
    record, lines = ((folder / file).read_text(encoding="utf-8") for file in _FILES)
    entries = [json.loads(line) for line in lines.splitlines()]

    def of_kind(kind: str) -> list[dict[str, Any]]:
        return [entry for entry in entries if entry["kind"] == kind]

    recipe = folder / "recipe.yaml"
    return Run(
        name or folder.resolve().name,
        folder,
        json.loads(record),
        of_kind("step"),
        of_kind("prune"),
        [entry["text"] for entry in of_kind("message")],
        recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )
