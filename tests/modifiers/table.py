"""The one table of all modifiers; the contract tests run over it."""

from dataclasses import dataclass, field
from typing import Any

import torch
import yaml
from torch import nn

from obert_modifiers import modifiers
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.modifiers.keys import REGISTRY


class TinyModel(nn.Module):
    """An embedding, two repeated layers of two linears, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        pooled = hidden.mean(dim=1)
        return {"logits": self.head(pooled), "sentence_embedding": pooled}


ENCODER = [f"layers.{i}.{j}.weight" for i in range(2) for j in (0, 2)]


def make_model(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel()


def make_batch(seed: int = 0, size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 11, (size, 5), generator=generator)
    return {"tokens": tokens, "labels": (tokens.sum(dim=1) % 2)}


def sample_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(batch["tokens"])["logits"]
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def make_source() -> GradientSource:
    return GradientSource(
        lambda request: [make_batch(100 * request.draw + i) for i in range(4)],
        sample_loss,
    )


SCHEDULE = {
    "init_sparsity": 0.3,
    "final_sparsity": 0.75,
    "start_epoch": 1.0,
    "end_epoch": 3.0,
    "update_frequency": 0.5,
}


@dataclass(frozen=True)
class Row:
    """One modifier and what the contract tests need of it.

    Attributes:
        cls: The class.
        keys: Arguments of a small sensible instance.
        label: What tells rows of one class apart.
        prunes: True for a pruning modifier.
        drops: True for a modifier that takes modules away.
        extras: Arguments of ``initialize``.
        final: Sparsity after the last event.
        epochs: Epochs of the events.
    """

    cls: type
    keys: dict[str, Any]
    prunes: bool = True
    drops: bool = False
    extras: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    final: float = 0.0
    epochs: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0)


EVERY_EVENT = (1.0, 1.5, 2.0, 2.5, 3.0)
HALF = {"mask_type": "2:4", "final_sparsity": 0.5}
GRADUALLY = {"end_epoch": 3.0, "update_frequency": 0.5}
SPAN = {"start_epoch": 1.0, "end_epoch": 2.0}


def _pruner(name: str, label: str, **keys: Any) -> Row:
    keys = SCHEDULE | keys
    extras = {"gradient_source": make_source()} if "num_grads" in keys else {}
    cls, final = getattr(modifiers, name), keys["final_sparsity"]
    return Row(cls, keys, extras=extras, label=label, final=final)


def _obert(label: str = "", block: int = 20, **keys: Any) -> Row:
    more = {"num_grads": 24, "fisher_block_size": block} | keys
    return _pruner("OBERTPruningModifier", label, **more)


def _gmp(label: str = "", **keys: Any) -> Row:
    return _pruner("GMPStarPruningModifier", label, **keys)


def _n_m(label: str, epochs: tuple[float, ...], mask_type: str, **keys: Any) -> Row:
    keys = {"start_epoch": 1.0, "mask_type": mask_type} | keys
    if keys.get("score") == "obs":
        keys = {"num_grads": 24, "fisher_block_size": 24} | keys
    kept, size = map(int, mask_type.split(":"))
    return Row(
        modifiers.NMPruningModifier,
        keys,
        extras={"gradient_source": make_source()},
        label=label,
        final=(size - kept) / size,
        epochs=epochs,
    )


def _other(name: str, label: str = "", drops=False, extras=None, **keys: Any) -> Row:
    cls = getattr(modifiers, name)
    return Row(cls, keys, prunes=False, drops=drops, extras=extras or {}, label=label)


def _qat(label: str = "", **keys: Any) -> Row:
    keys = {"start_epoch": 1.0, "disable_observer_epoch": 2.0} | keys
    return _other("QATModifier", label, **keys)


def _logits(label: str = "", extras=None, **keys: Any) -> Row:
    return _other("LogitDistillationModifier", label, extras=extras, **keys)


SINGLE = {"selection": "independent", "update": "independent"}
BY_N, BY_FRACTION = {"gradual": "by_n"}, {"gradual": "by_fraction"} | GRADUALLY
SINGLE_OBS = {"score": "obs", "selection": "independent"}
MEASURED = {"calibration_loss": lambda one: sample_loss(one, make_batch()).sum().item()}
STOP = {"metric": "loss", "mode": "min", "patience": 2, "min_delta": 0.01}
TABLE = [
    _obert(block=10),
    _obert("block4", mask_type="block4"),
    _obert("block:2x2", mask_type="block:2x2", selection="independent"),
    _obert("rows", update="row"),
    _obert("2:4", **HALF),
    _obert("2:4 by single groups", **HALF, **SINGLE),
    _gmp(),
    _gmp("block4", mask_type="block4", global_sparsity=True),
    _gmp("block:2x2", mask_type="block:2x2", global_sparsity=True),
    _gmp("2:4", **HALF, global_sparsity=True),
    _n_m("2:4 at once", (1.0,), "2:4"),
    _n_m("1:4 by fraction", EVERY_EVENT, "1:4", **BY_FRACTION),
    _n_m("2:4 by n", (1.0, 3.0), "2:4", **BY_N, **GRADUALLY),
    _n_m("1:4 by n, obs", EVERY_EVENT[::2], "1:4", **BY_N, score="obs", end_epoch=3.0),
    _n_m("2:4 by fraction, obs", EVERY_EVENT, "2:4", **BY_FRACTION, **SINGLE_OBS),
    _other("LayerDropModifier", drops=True, keep=[1]),
    _other("LayerDropModifier", "measured", True, MEASURED, keep=1, choice="measured"),
    _logits(
        hardness=0.7, temperature=3.0, **SPAN, extras={"distillation_teacher": "self"}
    ),
    _logits("named teacher", hardness=0.5, teacher="self", mask_padding=False),
    _other(
        "EmbeddingDistillationModifier",
        hardness=0.7,
        **SPAN,
        extras={"distillation_teacher": "self"},
    ),
    _qat(),
    _qat("per channel", end_epoch=3.0, freeze="activations", per_channel=True),
    _qat("linears alone", quantize_embeddings=False, ignore=["head"]),
    _other("EarlyStoppingModifier", **STOP),
    _other("WeightAveragingModifier", start_epoch=1.0, decay=0.7),
    _other("WeightAveragingModifier", "mean", start_epoch=1.0),
    _other("FrozenParamsModifier", params=["re:.*embedding.*"], **SPAN),
    _other("ConstantMasksModifier", params="__ALL_ENCODER__", **SPAN),
]
assert len(TABLE) == 28


def default_row(cls: type) -> Row:
    """Return a row with the keys of the sample in a modifier's docstring."""
    sample = cls.__doc__.split("Sample YAML::")[1].strip().partition("\n")[2]
    return Row(cls, yaml.safe_load(sample), prunes=False)


known = {row.cls for row in TABLE}
TABLE += [default_row(cls) for cls in REGISTRY.values() if cls not in known]
PRUNERS = [row for row in TABLE if row.prunes]
