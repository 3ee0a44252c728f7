"""Tiny models and data for the tests of the algorithms."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import nn

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import MaskPattern
from obert_modifiers.core.pruning.fisher import BlockFisher
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.targets import Target
from obert_modifiers.core.quantization.layers import Quantized
from obert_modifiers.core.quantization.scheme import Scheme, quantize_
from tests import reference


class TinyEncoder(nn.Module):
    """Tokens ``(k, T, 6)`` to two logits; a layer called twice, one by keyword."""

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
        return self.head(input=hidden.mean(dim=1))


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


def make_source(batches, loss=losses) -> GradientSource:
    return GradientSource(lambda request: batches, loss)


def targets_of(model: nn.Module, *names: str) -> list[Target]:
    return [Target(name, model.get_parameter(name)) for name in names]


def all_kept(targets: list[Target]) -> list[torch.Tensor]:
    return [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]


@contextmanager
def unchanged(targets: list[Target]) -> Iterator[None]:
    before = weights_of(targets)
    yield
    assert equal(weights_of(targets), before)


NAMES = ("first.weight", "shared.weight")
WIDTH = 12


def make_config(**options) -> SecondOrderConfig:
    return SecondOrderConfig(**{"num_grads": 12, "fisher_block_size": WIDTH, **options})


def prune(
    config,
    source=None,
    *,
    model=None,
    targets=None,
    sparsity=0.5,
    masks=None,
    global_sparsity=True,
    draw=0,
):
    """Prune the tiny encoder, or another model; return the result and the weights."""
    model = model or make_model(dtype=torch.float32)
    targets = targets or targets_of(model, *NAMES)
    masks = all_kept(targets) if masks is None else masks
    for target, mask in zip(targets, masks, strict=True):
        target.parameter.data.mul_(mask)
    result = second_order_step_(
        model,
        targets,
        masks,
        [sparsity] * len(targets),
        global_sparsity=global_sparsity,
        config=config,
        source=source or make_source(make_batches()),
        draw=draw,
    )
    return result, weights_of(targets)


def weights_of(targets: list[Target]) -> list[torch.Tensor]:
    return [t.parameter.detach().clone() for t in targets]


def equal(ones, others) -> bool:
    """Whether two lists of tensors are the same bits."""
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))


@contextmanager
def in_group(rank: int, folder: str, name: str = "meet") -> Iterator[None]:
    """Be one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=2
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def random_fisher(numel: int = 23, width: int = 5, m: int = 40):
    """A Fisher, its gradients, and weights."""
    torch.manual_seed(0)
    grads = torch.randn(m, numel, dtype=torch.float64)
    fisher = BlockFisher(numel, width, dtype=torch.float64)
    for part in grads.split(16):
        fisher.add_(part)
    return fisher, grads, torch.randn(numel, dtype=torch.float64)


def grouped_fisher(damp: float, count: int = 44, width: int = 12):
    """Several blocks, the last one padded: Fisher, dense Fisher, weights and mask."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    mix = torch.randn(8, count, generator=generator, dtype=torch.float64)
    grads = parts @ mix  # correlated, so that groups differ from their members
    weights = torch.randn(count, generator=generator, dtype=torch.float64)
    kept = torch.ones(count, dtype=torch.bool)
    kept[[3, 12, 13, 14]] = False
    fisher = BlockFisher(count, width, dtype=torch.float64)
    fisher.add_(grads.clone(), kept)
    dense = reference.dense_fisher((grads * kept).numpy(), damp)
    return fisher, reference.block_diagonal(dense, width), weights * kept, kept


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


GROUP_PATTERNS = ("block4", "block:2x2", "block:4x1", "block:2x6", "2:4", "1:4", "1:2")
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


def remove_quantization_(model: nn.Module) -> None:
    """Make quantized layers plain ones again."""
    for module in model.modules():
        if isinstance(module, Quantized):
            plain = module.plain_class
            del module.quantizers
            module.__class__ = plain


class ToyAttention(nn.Module):
    """Attention whose products are written in different ways."""

    def __init__(self, fused: str) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.fused = fused

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        mask = torch.zeros(x.shape[1], x.shape[1])
        mask[:, -1] = -1e9
        if self.fused in ("sdpa", "bool"):
            mask = mask == 0 if self.fused == "bool" else mask
            return nnf.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.fused == "other":
            return torch.einsum("bik,bjk,bjd->bid", q, k, v)
        scores = q @ k.transpose(1, 2) / 8**0.5 + mask
        return torch.matmul(scores.softmax(-1), v)


class Attending(nn.Module):
    """An embedding, attention, a norm and a head."""

    def __init__(self, fused: str = "sdpa") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.block = ToyAttention(fused)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.embedding(tokens))).mean(1))


TOKENS = torch.arange(12).reshape(2, 6) % 6


def trained(scheme: Scheme, fused: str = "sdpa") -> Attending:
    model = Attending(fused)
    quantize_(model, scheme)
    model.train()
    model(TOKENS)
    model.eval()
    return model
