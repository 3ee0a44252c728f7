"""Gradual oBERT pruning as an algorithm of Composer, from ``obert_modifiers.core``.

``Trainer(model=model, algorithms=[OBERT(0.8, end_epoch=2.0)], ...)``
"""

from collections.abc import Mapping
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.pruning_step import second_order_step_
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.core.pruning.schedule import interpolate_sparsity
from obert_modifiers.core.pruning.targets import Target, write_parameters_


def linear_weights(model: nn.Module) -> list[Target]:
    """Return the weights of linear layers inside the model's lists of layers."""
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return [
        Target(f"{name}.weight", module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(lists))
    ]


def size_of(batch: Any) -> int:
    """Return the number of samples of a batch, a mapping or a tuple of tensors."""
    values = batch.values() if isinstance(batch, Mapping) else batch
    return len(next(one for one in values if isinstance(one, Tensor)))


class OBERT(Algorithm):
    """Prune at the end of batches, and keep what is pruned at zero after each."""

    def __init__(
        self,
        final_sparsity: float,
        *,
        end_epoch: float,
        init_sparsity: float = 0.3,
        start_epoch: float = 0.0,
        update_frequency: float = 0.5,
        config: SecondOrderConfig | None = None,
    ) -> None:
        """Keep the schedule, in epochs; ``config`` says how an event works."""
        self.schedule = (start_epoch, end_epoch, init_sparsity, final_sparsity)
        self.update_frequency = update_frequency
        self.config = config or SecondOrderConfig()
        self.masks: dict[str, Tensor] = {}
        self.last, self.draws = -1.0, 0

    def match(self, event: Event, state: State) -> bool:
        """Return True after each optimizer step."""
        return event == Event.BATCH_END

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Prune if an event is due, apply the masks; writes the parameters."""
        epoch = int(state.timestamp.batch) / int(state.dataloader_len)
        targets, (start, end, *_) = linear_weights(state.model), self.schedule
        first, due = self.last < 0.0, epoch >= self.last + self.update_frequency
        if epoch >= start and (first or (self.last < end and (due or epoch >= end))):
            self._prune(state, targets, interpolate_sparsity(epoch, *self.schedule))
            self.last = epoch
            kept = sum(int(mask.sum()) for mask in self.masks.values())
            total = sum(mask.numel() for mask in self.masks.values())
            logger.log_metrics({"obert/sparsity": 1.0 - kept / total})
        if self.masks:
            values = [target.parameter.detach() for target in targets]
            write_parameters_(targets, values, [self.masks[t.name] for t in targets])

    def _prune(self, state: State, targets: list[Target], sparsity: float) -> None:
        def loss(model: Any, batch: Any) -> Tensor:
            return model.loss(model(batch), batch)

        ones = [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]
        masks = [self.masks.get(t.name, m) for t, m in zip(targets, ones, strict=True)]
        source = GradientSource(lambda request: state.dataloader, loss, size_of)
        sparsities = [sparsity] * len(targets)
        how = {"global_sparsity": True, "config": self.config, "source": source}
        result = second_order_step_(
            state.model, targets, masks, sparsities, draw=self.draws, **how
        )
        self.draws += 1
        self.masks = {t.name: m for t, m in zip(targets, result.masks, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, the last event and the draws of samples."""
        return {"masks": self.masks, "last": self.last, "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        values = (state[name] for name in ("masks", "last", "draws"))
        self.masks, self.last, self.draws = values
