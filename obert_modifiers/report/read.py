"""Read what a run left in its folder."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from obert_modifiers.recipe import RecipeError, load_recipe
from obert_modifiers.recipe.plan import plan_recipe

METRICS = ("accuracy", "pearson")


@dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Attributes:
        name: What it is called in the report.
        folder: Where its files are.
        record: ``metrics.json``.
        steps: Lines of ``metrics.jsonl`` about training, in order.
        evals: Its lines about evaluation.
        prunes: Its lines about pruning events.
        messages: What the training loop had to say.
        recipe: The recipe as it was run, or empty.
        planned: Epoch and target of each pruning event that the recipe plans; empty
            where there is no recipe, or it has several goals.
    """

    name: str
    folder: Path
    record: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    prunes: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    recipe: str = ""
    planned: list[tuple[float, float]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The figure that the report follows: the first of the task's headline."""
        names = self.record.get("headline", METRICS)
        return next((name for name in names if name in self.record), names[0])

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Zeros of each prunable parameter, counted from the saved file."""
        return self.record.get("layers", [])

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer steps in an epoch, None where nothing was logged."""
        last = next((line for line in reversed(self.steps) if line["epoch"]), None)
        return last["step"] / last["epoch"] if last else None

    def sparsity_curve(self) -> tuple[list[float], list[float]]:
        """Collect the sparsity over time: what was logged, and every pruning event.

        Returns:
            Epochs and sparsities, to be joined by steps; from 0 to the end.
        """
        points = [(0.0, 0, 0.0)]
        # An event at epoch 0.5 comes after the step that ended there was logged.
        points += [(line["epoch"], 0, line["sparsity"]) for line in self.steps]
        points += [(line["epoch"], 1, line["sparsity_after"]) for line in self.prunes]
        points.sort(key=lambda point: point[:2])
        return [point[0] for point in points], [point[2] for point in points]


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run's files.

    Args:
        folder: The output folder of a run.
        name: What to call it; the folder's name without.

    Returns:
        The run.

    Raises:
        FileNotFoundError: If the folder holds no finished run.
    """
    for needed in ("metrics.json", "metrics.jsonl"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(
                f"run={folder} has no {needed}; expected the output folder of a "
                "finished `obert train`; check the path"
            )
    record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        kinds.setdefault(entry.pop("kind"), []).append(entry)
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8") if recipe.is_file() else ""
    run = Run(
        name or folder.resolve().name,
        folder,
        record,
        kinds.get("step", []),
        kinds.get("eval", []),
        kinds.get("prune", []),
        [entry["text"] for entry in kinds.get("message", [])],
        text,
    )
    return replace(run, planned=_planned(run))


def _planned(run: Run) -> list[tuple[float, float]]:
    """Work out when a run's recipe prunes to what.

    Returns:
        Epoch and target of each event; none where the recipe is not one that is
        understood here, such as one of a newer version.
    """
    if not run.recipe or not run.prunes:
        return []
    try:
        loaded = load_recipe(run.recipe)
        steps = run.steps_per_epoch
        plan = plan_recipe(loaded, steps_per_epoch=steps and round(steps))
    except (RecipeError, ValueError):
        return []
    goals = [pruning for pruning in plan.pruning if len(pruning.goals) == 1]
    if len(goals) != 1 or len(plan.pruning) != 1 or goals[0].events is None:
        return []
    return [
        (event.epoch, event.sparsities[0])
        for event in goals[0].events
        if event.sparsities[0] is not None
    ]
