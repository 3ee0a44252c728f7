"""What models return."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

# What a task's loss is computed from, and the model is not called with.
SAMPLE_IDS = "sample_ids"  # numbers that tell the samples apart
UNLABELLED = "unlabelled"  # True for samples whose labels only fill their places
LABELS = ("labels", "start_positions", "end_positions", SAMPLE_IDS, UNLABELLED)
EMBEDDING = "sentence_embedding"  # the output that sentence-transformers names so
TEACHERS_OWN = "teacher_"  # how the inputs begin that only the teacher gets
# What logits stand for, as transformers' ``problem_type`` names it; elsewhere classes.
REGRESSION, MULTI_LABEL = "regression", "multi_label_classification"


def logits_of(outputs: Any) -> Tensor:
    """Return the logits: of a mapping, the first of a tuple, or the tensor itself."""
    if isinstance(outputs, Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]


def problem_of(
    logits: Tensor, labels: Tensor | None = None, named: str | None = None
) -> str | None:
    """Tell what logits stand for, by the rule of transformers.

    ``named`` is the ``problem_type`` of the model's configuration, which decides where
    logits (k, outputs) are those of samples and not of tokens, (k, T, outputs).

    Returns:
        `REGRESSION` for one output, `MULTI_LABEL` for a label at each of several
        outputs of a sample, None for classes of which one is right.
    """
    if named is not None and logits.ndim == 2:
        return named if named in (REGRESSION, MULTI_LABEL) else None
    if logits.shape[-1] == 1:
        return REGRESSION
    if logits.ndim == 2 and labels is not None and labels.shape == logits.shape:
        return MULTI_LABEL
    return None
