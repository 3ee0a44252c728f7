"""Tiny models and data for the tests of the algorithms."""

import numpy as np
import torch
from torch import nn

from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest
from obert_modifiers.core.pruning.targets import Target
from tests import reference


class TinyEncoder(nn.Module):
    """Tokens ``(k, T, 6)`` to two logits; one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.shared = nn.Linear(10, 10)
        self.drop = nn.Dropout(0.5)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(10, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        hidden = torch.tanh(self.shared(hidden))
        hidden = self.drop(torch.tanh(self.shared(hidden)))
        return self.head(hidden.mean(dim=1))


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> TinyEncoder:
    torch.manual_seed(seed)
    return TinyEncoder().to(dtype)


def make_batches(count: int = 3, size: int = 4, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 5, 6, generator=generator, dtype=torch.float64),
            torch.randint(0, 2, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def losses(model: nn.Module, batch) -> torch.Tensor:
    x, y = batch
    logits = model(x.to(model.head.weight.dtype))
    return nn.functional.cross_entropy(logits, y, reduction="none")


def make_source(batches) -> GradientSource:
    def draw(request: SampleRequest):
        return batches

    return GradientSource(draw, losses)


def targets_of(model: nn.Module, *names: str) -> list[Target]:
    return [Target(name, model.get_parameter(name)) for name in names]


def sample_gradients(model, batches, parameter: nn.Parameter, loss_of=losses):
    """Gradient of each sample's loss by plain autograd, ``(m, numel)``."""
    model.eval()
    rows = []
    for batch in batches:
        for loss in loss_of(model, batch):
            (grad,) = torch.autograd.grad(
                loss, [parameter], retain_graph=True, allow_unused=True
            )
            grad = torch.zeros_like(parameter) if grad is None else grad
            rows.append(grad.reshape(-1))
    return torch.stack(rows)


GROUP_PATTERNS = (
    "block4",
    "block:2x2",
    "block:4x1",
    "block:2x6",
    "2:4",
    "1:4",
    "1:2",
)
assert len(GROUP_PATTERNS) == 7


class Conv1D(nn.Module):
    """A linear layer with its weight stored as input x output, as in GPT-2."""

    def __init__(self, out: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Mixed(nn.Module):
    """A linear layer, a transposed one and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)
        self.turned = Conv1D(8, 12)
        self.conv = nn.Conv2d(3, 4, (2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.conv(x.reshape(-1, 3, 2, 2)).flatten(1)
        return torch.tanh(self.linear(x)) + torch.tanh(self.turned(x))[:, :4] + image


MIXED_NAMES = {"linear.weight": False, "turned.weight": True, "conv.weight": False}


def make_mixed() -> Mixed:
    torch.manual_seed(0)
    return Mixed().double()


def mixed_batches():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, 12, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (3, 8), generator=generator)
    return list(zip(x, y, strict=True))


def mixed_losses(model: nn.Module, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mixed_targets(model: nn.Module) -> list[Target]:
    return [
        Target(n, model.get_parameter(n), turned) for n, turned in MIXED_NAMES.items()
    ]


def indices_of(target: Target, pattern: MaskPattern) -> list[list[int]]:
    shape = target.parameter.shape
    return reference.group_indices(
        (shape[0], int(np.prod(shape[1:]))),
        pattern.rows,
        pattern.columns,
        target.transposed,
    )
