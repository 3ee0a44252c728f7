"""Tiny models and data for the tests of the algorithms."""

import torch
from torch import nn

from obert_modifiers.core.gradients import GradientSource, SampleRequest
from obert_modifiers.core.pruning_step import Target


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


def sample_gradients(model: nn.Module, batches, parameter: nn.Parameter):
    """Gradient of each sample's loss by plain autograd, ``(m, numel)``."""
    model.eval()
    rows = []
    for batch in batches:
        for loss in losses(model, batch):
            (grad,) = torch.autograd.grad(
                loss, [parameter], retain_graph=True, allow_unused=True
            )
            grad = torch.zeros_like(parameter) if grad is None else grad
            rows.append(grad.reshape(-1))
    return torch.stack(rows)
