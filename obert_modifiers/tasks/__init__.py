"""What to train on: a task is a file of this folder and a line of `TASKS`.

This file and the tops of the tasks' files import neither torch nor datasets, so that
`--help` and a misspelt flag take no second.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

TASKS = {
    "question_answering": "Find answers in contexts, as in SQuAD",
    "text_classification": "Classify texts, or predict a number",
    "token_classification": "Classify the words of texts, such as named entities",
    "sentence_embedding": "Embed sentences, distilled from texts without labels",
    "masked_language_modeling": "Predict words that were masked, for upstream pruning",
}


def load(name: str) -> Any:
    """Return the `obert_modifiers.tasks.task.Task` of that name."""
    return import_module(f"{__name__}.{name}").TASK


def check_words(name: str, argv: Sequence[str]) -> None:
    """Check a command line before anything heavy is imported; ``--help`` ends here."""
    from obert_modifiers.tasks.command_line import check

    check(load(name).parse(argv))


def main(name: str, argv: Sequence[str], reporter: Any = None) -> dict[str, Any]:
    """Run what a task's command line asks for; returns the record that is written.

    Works under accelerate's launchers. The reporter shows the progress, see
    `obert_modifiers.training.train`.
    """
    from obert_modifiers.tasks.run.execute import run

    task = load(name)
    return run(task, task.parse(argv), reporter)
