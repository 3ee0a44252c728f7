"""Losses of knowledge distillation on a task's outputs."""

import torch.nn.functional as nnf
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""Compute the softened KL divergence of each row of logits.

    :math:`T^2 \, KL(softmax(z_t / T) \,\|\, softmax(z_s / T))` (Hinton et al. 2015,
    section 2; GMP★ section 2.1, "Knowledge Distillation"). The factor :math:`T^2`
    keeps the size of the gradient independent of the temperature.

    Args:
        student: Logits :math:`z_s` of the student, ``(k, classes)``, floating point.
        teacher: Logits :math:`z_t` of the teacher, same shape.
        temperature: Softening T, larger than 0.

    Returns:
        Divergence of each row, ``(k,)``, float32 or wider.

    Raises:
        ValueError: If the shapes differ or the temperature is not positive.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher logits have shape {tuple(teacher.shape)}; expected the "
            f"student's {tuple(student.shape)}; use a teacher with the same labels"
        )
    if temperature <= 0.0:
        raise ValueError(
            f"temperature={temperature} is not positive; expected a number above 0; "
            "use 2.0"
        )
    # Half-precision logits lose the small differences that distillation is about.
    student, teacher = _at_least_float32(student), _at_least_float32(teacher)
    student_log = nnf.log_softmax(student / temperature, dim=-1)
    teacher_log = nnf.log_softmax(teacher / temperature, dim=-1)
    divergence = nnf.kl_div(student_log, teacher_log, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def mix_losses(task_loss: Tensor, distilled: Tensor, hardness: float) -> Tensor:
    """Mix task and distillation loss, ``(1 - h) * task + h * KL``.

    GMP★ section 2.1, "Knowledge Distillation (KD) Hardness".

    Args:
        task_loss: Loss of the task, any shape.
        distilled: Distillation loss, same shape.
        hardness: Weight h of the distillation loss, in [0, 1].

    Returns:
        The mixed loss, same shape.
    """
    if hardness == 1.0:
        return distilled  # an infinite or NaN task loss must not reach the sum
    return (1.0 - hardness) * task_loss + hardness * distilled


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.element_size() >= 4 else values.float()
