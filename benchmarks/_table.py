"""The rows of the one-shot benchmark as lines and as Markdown."""

from typing import Any

import _common as common
from _oneshot import MAGNITUDE, SAMPLES_OF_BATCH


def show(figures: dict[str, float]) -> str:
    """Format the figures of one model.

    Args:
        figures: With accuracy and loss.

    Returns:
        Part of a line.
    """
    return f"accuracy {figures['accuracy']:.4f}, loss {figures['loss']:.4f}"


def label(row: dict[str, Any]) -> str:
    """Name a row by data set, pattern, sparsity and method.

    Args:
        row: A row.

    Returns:
        The start of a line.
    """
    where = f"{row['dataset']}, {row['pattern']} {100 * row['sparsity']:.0f} %"
    return f"{where}, seed {row['seed']}, {method(row)}"


def method(row: dict[str, Any]) -> str:
    """Name a method with the options that are not the usual ones.

    Args:
        row: A row.

    Returns:
        The head of a line of the table.
    """
    if row["method"] == MAGNITUDE:
        return MAGNITUDE
    by_batch = row["grad_granularity"] == "batch"
    options = {
        f"m = {row['num_grads']}": row["num_grads"] != 1024,
        f"batches of {SAMPLES_OF_BATCH}": by_batch,
        f"B = {row['fisher_block_size']}": row["fisher_block_size"] != 48,
        "sampled labels": row["labels"] == "sampled",
        f"damping {row['damp_fraction']:g}": row["damp_fraction"] != 0.01,
        f"{row['num_recomputations']} recomputations": row["num_recomputations"] > 1,
        "first-order term": row["first_order"],
    }
    unusual = [text for text, is_so in options.items() if is_so]
    return row["method"] + (f" ({', '.join(unusual)})" if unusual else "")


def table(rows: list[dict[str, Any]], dense: dict[str, Any]) -> list[str]:
    """Format rows as Markdown: accuracy / loss, mean and spread over the seeds.

    Args:
        rows: Any rows.
        dense: Figures of the dense models by data set.

    Returns:
        The lines.
    """
    lines: list[str] = []
    for name, pattern in dict.fromkeys((r["dataset"], r["pattern"]) for r in rows):
        own = [r for r in rows if (r["dataset"], r["pattern"]) == (name, pattern)]
        columns = sorted({row["sparsity"] for row in own})
        seeds = sorted({row["seed"] for row in own} - {None})
        before = show(dense[name]) if name in dense else "not measured"
        head = f"{name}, {pattern}, seeds {seeds}, accuracy / loss; dense: {before}"
        lines += [
            "",
            head,
            "",
            "| | " + " | ".join(f"{100 * c:.0f} %" for c in columns) + " |",
        ]
        lines.append("|---|" + "---|" * len(columns))
        for line in dict.fromkeys(method(row) for row in own):
            cells = [
                cell([r for r in own if (method(r), r["sparsity"]) == (line, column)])
                for column in columns
            ]
            lines.append(f"| {line} | " + " | ".join(cells) + " |")
    return lines


def cell(rows: list[dict[str, Any]]) -> str:
    """Format rows that differ in the seed alone.

    Args:
        rows: The rows; none gives an empty cell.

    Returns:
        Accuracy and loss.
    """
    if not rows:
        return ""
    parts = (("accuracy", 3), ("loss", 3))
    return " / ".join(
        common.mean_and_spread([row[figure] for row in rows], digits)
        for figure, digits in parts
    )
