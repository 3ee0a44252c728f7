"""The metrics of SparseML's scripts, computed here, under the names of the hub's."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from seqeval import metrics as entities

from obert_modifiers.tasks.data.columns import GLUE_COLUMNS, GLUE_FIGURES
from obert_modifiers.tasks.data.metrics import FIGURES, measure
from obert_modifiers.tasks.squad.metrics import squad_metrics, squad_v2_metrics

Figures = dict[str, Any]


class LocalMetric:
    """What `datasets.load_metric` gives, as far as SparseML's scripts use it."""

    def __init__(self, path: str, config_name: str | None = None) -> None:
        self.name = path
        self._compute = _METRICS[_key(path, config_name)]

    def compute(self, *, predictions: Any, references: Any) -> Figures:
        return self._compute(predictions, references)


def is_local(path: str, config_name: str | None = None) -> bool:
    """Tell whether a metric is computed here."""
    return _key(path, config_name) in _METRICS


def _key(path: str, config_name: str | None) -> str:
    return f"glue/{config_name}" if path == "glue" else path


def _glue(task: str) -> Callable[[Any, Any], Figures]:
    names = GLUE_FIGURES.get(task, ("accuracy",))
    return partial(measure, [name for name in names if name in FIGURES])


def _correlations(predictions: Any, references: Any) -> Figures:
    figures = measure(("pearson", "spearman"), predictions, references)
    return {"pearson": figures["pearson"], "spearmanr": figures["spearman"]}


def _entities(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> Figures:
    truth, predicted = [list(r) for r in references], [list(p) for p in predictions]
    report = entities.classification_report(
        truth, predicted, output_dict=True, zero_division=0
    )
    figures: Figures = {}
    for kind, row in report.items():
        names = {"precision": "precision", "recall": "recall", "f1": "f1-score"}
        values = {name: float(row[theirs]) for name, theirs in names.items()}
        if kind == "micro avg":
            figures |= {f"overall_{name}": value for name, value in values.items()}
        elif not kind.endswith(" avg"):
            figures[kind] = values | {"number": int(row["support"])}
    accuracy = float(entities.accuracy_score(truth, predicted))
    return figures | {"overall_accuracy": accuracy}


def _answers(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    said = {one["id"]: one["prediction_text"] for one in predictions}
    return (
        [said[one["id"]] for one in references],
        [list(one["answers"]["text"]) for one in references],
    )


def _squad(predictions: Any, references: Any) -> Figures:
    return dict(squad_metrics(*_answers(predictions, references)))


def _squad_v2(predictions: Any, references: Any) -> Figures:
    found = squad_v2_metrics(*_answers(predictions, references))
    # The hub's script has other names, and counts the questions.
    renamed = {name.replace("exact_match", "exact"): v for name, v in found.items()}
    return renamed | {"total": len(references)}


_METRICS: dict[str, Callable[[Any, Any], Figures]] = {
    "accuracy": partial(measure, ("accuracy",)),
    "seqeval": _entities,
    "squad": _squad,
    "squad_v2": _squad_v2,
    **{f"glue/{task}": _glue(task) for task in (*GLUE_COLUMNS, "hans")},
    "glue/stsb": _correlations,
}
