"""What each picture shows, in a sentence or two."""

from collections.abc import Sequence

from obert_modifiers.report.panels import layer_grid
from obert_modifiers.report.read import Run
from obert_modifiers.report.text import figure, listed, number, percent

SMALLER_IS_BETTER = ("loss", "perplexity")
_SAME = 5e-4  # sparsities this close are as planned: counts are whole numbers


def loss(runs: Sequence[Run]) -> str:
    """Say where the loss on validation data ends.

    Args:
        runs: The runs of the picture.

    Returns:
        The finding.
    """
    return _ends(runs, "loss", "The validation loss", 4)


def metric(runs: Sequence[Run]) -> str:
    """Say where the metric ends, and how much of the best run's others keep.

    Args:
        runs: The runs of the picture.

    Returns:
        The finding.
    """
    name = runs[0].metric
    return _ends(runs, name, f"The validation {name}", 3)


def _ends(runs: Sequence[Run], key: str, what: str, digits: int) -> str:
    lines = [[one for one in run.evals if one.get(key) is not None] for run in runs]
    if not any(lines):
        return f"{what} was not measured."
    down = key in SMALLER_IS_BETTER
    best_of = min if down else max
    if len(runs) == 1:
        (own,) = lines
        best = best_of(own, key=lambda line: line[key])
        text = f"{what} ends at {number(own[-1][key], digits)}"
        if best[key] == own[-1][key]:
            return f"{text}, its best."
        at = number(best["epoch"], 2)
        return f"{text}; its best was {number(best[key], digits)} at epoch {at}."
    pairs = zip(runs, lines, strict=True)
    ends = [(run.name, own[-1][key]) for run, own in pairs if own]
    ends.sort(key=lambda end: end[1], reverse=not down)
    texts = [f"{name} {number(value, digits)}" for name, value in ends]
    return f"{what} at the end, the best first: {', '.join(texts)}."


def sparsity(runs: Sequence[Run]) -> str:
    """Say whether pruning went as the recipe plans it.

    Args:
        runs: The runs of the picture.

    Returns:
        The finding.
    """
    texts = []
    for run in runs:
        if not run.prunes:
            continue
        last = run.prunes[-1]
        count = len(run.prunes)
        events = f"{count} event{'s' * (count != 1)}"
        text = f"{events} to {percent(last['sparsity_after'])}"
        if run.planned:
            off = max(abs(p - a) for p, a in _pairs(run)) if _pairs(run) else 1.0
            as_planned = off < _SAME and len(run.planned) == count
            text += ", as planned" if as_planned else ", not as the recipe plans it"
        texts.append(text if len(runs) == 1 else f"{run.name}: {text}")
    if not texts:
        return "Nothing was pruned."
    ending = "The wide, pale line is the plan." if any(r.planned for r in runs) else ""
    return f"{'; '.join(texts)}. {ending}".strip()


def _pairs(run: Run) -> list[tuple[float, float]]:
    applied = [event["sparsity_after"] for event in run.prunes]
    return list(zip([s for _, s in run.planned], applied, strict=False))


def rate(runs: Sequence[Run]) -> str:
    """Say how high the learning rate goes and how often it starts anew.

    Args:
        runs: The runs of the picture.

    Returns:
        The finding.
    """
    texts = []
    for run in runs:
        rates = [line["learning_rate"] for line in run.steps]
        if not rates:
            continue
        rises = sum(b > 1.5 * a for a, b in zip(rates, rates[1:], strict=False))
        again = f" and starts anew {rises} times" if rises > 1 else ""
        again = " and starts anew once" if rises == 1 else again
        text = f"peaks at {max(rates):.1e}{again}"
        texts.append(text if len(runs) == 1 else f"{run.name} {text}")
    if not texts:
        return "No learning rate was recorded."
    return ("It " if len(runs) == 1 else "") + "; ".join(texts) + "."


def layers(run: Run) -> str:
    """Say which parts of the encoder kept most and which least.

    Args:
        run: The run.

    Returns:
        The finding.
    """
    rows, columns, cells = layer_grid(run.layers)
    ordered = sorted(cells.items(), key=lambda cell: cell[1])
    (low, least), (high, most) = ordered[0], ordered[-1]
    if most - least < 0.005:
        return f"All layers are pruned alike, to {percent(most, 1)}."
    numbered = all(row.isdigit() for row in rows) and len(rows) > 1
    names = [f"{c} of layer {r}" if numbered else f"{r} {c}" for r, c in (low, high)]
    text = (
        f"Least is pruned of the {names[0]} ({percent(least, 1)}), most of the "
        f"{names[1]} ({percent(most, 1)})."
    )
    if len(columns) > 1:
        means = {
            column: sum(own) / len(own)
            for column in columns
            if (own := [s for (_, c), s in cells.items() if c == column])
        }
        first, last = min(means, key=means.get), max(means, key=means.get)
        text += (
            f" On average over the layers {first} keeps most "
            f"({percent(means[first], 1)} pruned) and {last} least "
            f"({percent(means[last], 1)})."
        )
    return text


def events(run: Run) -> str:
    """Say what the pruning events cost.

    Args:
        run: The run.

    Returns:
        The finding.
    """
    seconds = sum(event["seconds"] for event in run.prunes)
    count = len(run.prunes)
    text = f"{count} event{'s' * (count != 1)} took {number(seconds, 1)} s"
    total = run.record.get("train_seconds")
    if total:
        text += f", {percent(seconds / total, 0)} of the training"
    known = [
        event for event in run.prunes if event["predicted_loss_increase"] is not None
    ]
    if known:
        worst = max(known, key=lambda event: event["predicted_loss_increase"])
        increase = number(worst["predicted_loss_increase"], 4)
        text += (
            f"; the largest predicted loss increase is {increase}, of the step from "
            f"{percent(worst['sparsity_before'], 1)} to "
            f"{percent(worst['sparsity_after'], 1)}"
        )
    return f"{text}."


def tradeoff(points: Sequence, name: str, axis: str) -> str:
    """Say how much of the reference's metric the others keep, at which gain.

    Args:
        points: The first is the reference.
        name: The metric.
        axis: ``smaller`` or ``faster``.

    Returns:
        The finding.
    """
    base, *others = points
    if not others:
        return (
            f"{base.name} alone: {name} {figure(base.metric)}; compare it with a dense "
            f"run to see what is {axis}."
        )
    texts = []
    for point in others:
        kept = ""
        if base.metric and name not in SMALLER_IS_BETTER:
            kept = f" at {percent(point.metric / base.metric, 1)} of its {name}"
        else:
            kept = f" at a {name} of {figure(point.metric)}"
        texts.append(f"{point.name} is {point.gain:.2f}x {axis}{kept}")
    return f"Against {base.name} ({name} {figure(base.metric)}): {listed(texts)}."
