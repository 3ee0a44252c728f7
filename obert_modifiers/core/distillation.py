"""Losses of knowledge distillation on a model's outputs and hidden states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as nnf
from torch import Tensor

from obert_modifiers.core.outputs import MULTI_LABEL, REGRESSION, problem_of

IGNORED_LABEL = -100  # torch's and transformers' label of what has no loss
_POSITIONS = ("start_logits", "end_logits")


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float, kept: Tensor | None = None
) -> Tensor:
    r"""Compute the softened KL divergence of each row of logits.

    :math:`T^2 \, KL(softmax(z_t / T) \,\|\, softmax(z_s / T))` (Hinton et al. 2015,
    section 2; GMP★ section 2.1, "Knowledge Distillation"). The factor :math:`T^2`
    keeps the size of the gradient independent of the temperature.

    Logits :math:`z_s` of the student and :math:`z_t` of the teacher are
    ``(k, classes)``. Where the bool ``kept`` of that shape is False, an entry is left
    out of both softmaxes; each row has one that is True.

    Returns:
        Divergence of each row, ``(k,)``, float32 or wider.

    Raises:
        ValueError: If the shapes differ or the temperature T is not positive.
    """
    if temperature <= 0.0:
        raise ValueError(
            f"temperature={temperature} is not positive; expected a number above 0; "
            "use 2.0"
        )
    student, teacher = _comparable(student, teacher)
    if kept is not None:
        student = student.masked_fill(~kept, -torch.inf)
        teacher = teacher.masked_fill(~kept, -torch.inf)
    student_log = nnf.log_softmax(student / temperature, dim=-1)
    teacher_log = nnf.log_softmax(teacher / temperature, dim=-1)
    if kept is not None:
        # Both are -inf there, and their difference would be no number.
        student_log = student_log.masked_fill(~kept, 0.0)
        teacher_log = teacher_log.masked_fill(~kept, 0.0)
    divergence = nnf.kl_div(student_log, teacher_log, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def regression_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of each row of outputs, ``(k,)``, float32 or wider.

    :math:`mean_j (z_{s,j} - z_{t,j})^2`. The softmax of one number is 1 whatever the
    number, so that the divergence of :func:`distillation_loss` would be 0; and a number
    has no temperature, which is not used.
    """
    student, teacher = _comparable(student, teacher)
    return (student - teacher).square().mean(dim=-1)


def binary_distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float
) -> Tensor:
    r"""Return the softened KL divergence of each row of labels that do not exclude.

    :math:`T^2 \, mean_j KL(Bernoulli(\sigma(z_{t,j} / T)) \,\|\,
    Bernoulli(\sigma(z_{s,j} / T)))`: :func:`distillation_loss` of a label against its
    absence, the mean over the labels as in the task's loss.
    """
    # A sigmoid is the softmax of the logit and 0.
    student = torch.stack([student, torch.zeros_like(student)], dim=-1)
    teacher = torch.stack([teacher, torch.zeros_like(teacher)], dim=-1)
    return distillation_loss(student, teacher, temperature).mean(dim=-1)


def _comparable(
    student: Tensor,
    teacher: Tensor,
    what: str = "logits",
    fix: str = "use a teacher with the same labels",
) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher {what} have shape {tuple(teacher.shape)}; expected the student's "
            f"{tuple(student.shape)}; {fix}"
        )
    # Half-precision logits lose the small differences that distillation is about.
    return _at_least_float32(student), _at_least_float32(teacher)


def mix_losses(task_loss: Tensor, distilled: Tensor, hardness: float) -> Tensor:
    """Return ``(1 - h) * task + h * KL``, GMP★ section 2.1, "KD Hardness"."""
    if hardness == 1.0:
        return distilled  # an infinite or NaN task loss must not reach the sum
    return (1.0 - hardness) * task_loss + hardness * distilled


@dataclass(frozen=True)
class Outputs:
    """What of a model's outputs can be distilled.

    Logits are ``(k, classes)`` or ``(k, T, classes)``, or start and end logits
    ``(k, T)``, whose classes are the positions of the sequence. ``hidden`` states are
    ``(k, T, H)`` after each layer; empty where the model gives none.
    """

    logits: tuple[Tensor, ...]
    over_positions: bool = False
    hidden: tuple[Tensor, ...] = ()


def read_outputs(outputs: Any) -> Outputs:
    """Return logits and hidden states of what a model returned.

    A mapping with ``start_logits`` and ``end_logits``, or with ``logits``, and with
    ``hidden_states``, of which the first is the embeddings'; or a tuple that starts
    with the logits, or the logits.
    """
    if isinstance(outputs, Tensor):
        return Outputs((outputs,))
    if not isinstance(outputs, Mapping):
        return Outputs((outputs[0],))
    hidden = hidden_of(outputs)
    if all(name in outputs for name in _POSITIONS):
        return Outputs(tuple(outputs[name] for name in _POSITIONS), True, hidden)
    return Outputs((outputs["logits"],), False, hidden)


def hidden_of(outputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return the hidden states (k, T, H) after each layer, () where there are none."""
    return tuple(outputs.get("hidden_states") or ())[1:]


@dataclass(frozen=True)
class RowLosses:
    """The loss ``(n,)`` of each row of logits that counts, of ``size`` samples k.

    ``samples`` ``(n,)`` has the sample that each row belongs to.
    """

    values: Tensor
    samples: Tensor
    size: int

    def mean(self) -> Tensor:
        """Return the mean over the rows, 0 without rows."""
        return self.values.sum() / max(len(self.values), 1)

    def per_sample(self) -> Tensor:
        """Return the mean over the rows of each sample, ``(k,)``, 0 without rows."""
        zero = self.values.new_zeros(self.size)
        count = zero.index_add(0, self.samples, torch.ones_like(self.values))
        return zero.index_add(0, self.samples, self.values) / count.clamp(min=1.0)


def output_losses(
    student: Outputs,
    teacher: Outputs,
    temperature: float,
    *,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    mask_unlabelled: bool = True,
    problem: str | None = None,
) -> RowLosses:
    """Compare the logits row by row, and leave padding out.

    Classes by :func:`distillation_loss`, numbers (one output) by
    :func:`regression_distillation_loss`, several labels at once by
    :func:`binary_distillation_loss`: as ``problem_type`` of the student's configuration
    says, or else outputs and labels, as in transformers.

    A row is a sample, or for tokens a position; there rows of padding, 0 in the
    ``(k, T)`` attention mask, and with ``mask_unlabelled`` rows whose label is -100 are
    left out. For question answering, start and end logits are a row each, and positions
    of padding are left out of the softmax. Memory: for tokens, the logits of the rows
    that count, twice.

    Returns:
        The loss of each row that counts.

    Raises:
        ValueError: If the outputs of teacher and student do not match.
    """
    if len(student.logits) != len(teacher.logits):
        raise ValueError(
            f"teacher gives {len(teacher.logits)} logits; expected the student's "
            f"{len(student.logits)}; use a teacher of the same task"
        )
    values, samples = [], []
    size = len(student.logits[0])
    for ours, theirs in zip(student.logits, teacher.logits, strict=True):
        rows = torch.ones(ours.shape[:-1], dtype=torch.bool, device=ours.device)
        kept = None
        if student.over_positions and _fits(attention_mask, ours.shape):
            kept = attention_mask.ne(0)
            rows = rows & kept.any(dim=-1)
        elif ours.ndim == 3:
            told = labels if mask_unlabelled else None
            rows = counted_tokens(rows, attention_mask, told)
        # What logits stand for is seen before rows are picked: (n, classes) of tokens
        # have the shape of a sample's labels by chance. So are shapes compared.
        kind = None if student.over_positions else problem_of(ours, labels, problem)
        if ours.shape == theirs.shape:
            ours, theirs = ours[rows], theirs[rows]
        kept = None if kept is None else kept[rows]
        if kind == REGRESSION:
            values.append(regression_distillation_loss(ours, theirs))
        elif kind == MULTI_LABEL:
            values.append(binary_distillation_loss(ours, theirs, temperature))
        else:
            values.append(distillation_loss(ours, theirs, temperature, kept))
        samples.append(rows.nonzero()[:, 0])
    return RowLosses(torch.cat(values), torch.cat(samples), size)


def counted_tokens(
    rows: Tensor, attention_mask: Tensor | None, labels: Tensor | None = None
) -> Tensor:
    """Return ``(k, T)`` rows without padding and tokens without a label (-100).

    Masks and labels of other shapes, and None, tell nothing.
    """
    if _fits(attention_mask, rows.shape):
        rows = rows & attention_mask.ne(0)
    if _fits(labels, rows.shape):
        rows = rows & labels.ne(IGNORED_LABEL)
    return rows


def square_head_losses(
    student: Tensor, teacher: Tensor, rows: Tensor | None = None
) -> Tensor:
    r"""Compare the hidden states of one layer.

    SquareHead (Kurtic et al. 2023, "Sparse Fine-tuning for Inference Acceleration of
    Large Language Models"), normalised as SparseML's ``square_head`` comparison does:
    :math:`MSE(f_s, f_t) / MSE(f_t, 0)` over the batch. With
    :math:`N_i = \sum (f_s - f_t)^2` and :math:`D_i = \sum f_t^2` over the tokens of
    sample i, this returns :math:`N_i / (\sum_j D_j / k)`, whose mean is that number:
    the normaliser takes no gradient and is the same for all samples. Hidden states f
    are ``(k, T, H)``; the bool ``(k, T)`` rows are the tokens that count.

    Returns:
        ``(k,)``, float32 or wider; raises if the shapes differ.
    """
    fix = "use a teacher of the same width or hidden_weight: 0"
    student, teacher = _comparable(student, teacher, "hidden states", fix)
    error = (student - teacher).square().sum(dim=-1)  # (k, T)
    norm = teacher.square().sum(dim=-1)
    if rows is not None:
        error, norm = error.masked_fill(~rows, 0.0), norm.masked_fill(~rows, 0.0)
    scale = norm.sum().clamp(min=torch.finfo(norm.dtype).tiny) / len(norm)
    return error.sum(dim=-1) / scale


def map_layers(
    layer_map: str | Sequence[int], student: int, teacher: int
) -> list[tuple[int, int]]:
    """Pair the layers of a student with layers of its teacher.

    ``uniform``: layer l of the student's L, counted from 1, with layer floor(l M / L)
    of the teacher's M; ``last``: only the last with the last; or, for each layer of the
    student, the index of the teacher's, counted from 0.

    Returns:
        Indices, counted from 0: the student's and the teacher's.

    Raises:
        ValueError: If there are no such layers.
    """
    if layer_map == "last":
        return [(student - 1, teacher - 1)]
    if layer_map == "uniform":
        if student > teacher:
            raise ValueError(
                f"layer_map=uniform maps {student} layers to a teacher with {teacher}; "
                "expected as many or more; use last"
            )
        return [(i, (i + 1) * teacher // student - 1) for i in range(student)]
    indices = [int(i) for i in layer_map]
    if len(indices) != student or max(indices) >= teacher:
        raise ValueError(
            f"layer_map={indices} does not fit a student of {student} layers and a "
            f"teacher of {teacher}; expected an index below {teacher} for each of the "
            f"{student}; correct it or use uniform"
        )
    return list(enumerate(indices))


def hidden_losses(
    student: Outputs,
    teacher: Outputs,
    layer_map: str | Sequence[int],
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Compare hidden states by :func:`square_head_losses`, without padding.

    Returns:
        ``(k,)``, the mean over the pairs of layers of :func:`map_layers`.

    Raises:
        ValueError: If one of the models gives no hidden states.
    """
    for name, outputs in (("student", student), ("teacher", teacher)):
        if not outputs.hidden:
            raise ValueError(
                f"{name} gives no hidden_states; expected them for hidden_weight; "
                "return them beside the logits or write hidden_weight: 0"
            )
    shape = student.hidden[0].shape[:2]
    rows = attention_mask.ne(0) if _fits(attention_mask, shape) else None
    pairs = map_layers(layer_map, len(student.hidden), len(teacher.hidden))
    losses = [
        square_head_losses(student.hidden[one], teacher.hidden[two], rows)
        for one, two in pairs
    ]
    return torch.stack(losses).mean(dim=0)


def _fits(values: Tensor | None, shape: Sequence[int]) -> TypeGuard[Tensor]:
    return values is not None and tuple(values.shape) == tuple(shape)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.element_size() >= 4 else values.float()
