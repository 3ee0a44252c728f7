"""oBERT in one shot, as a modifier of llm-compressor, from ``obert_modifiers.core``.

``oneshot(model=model, recipe=OBERTModifier(sparsity=0.5), dataset=rows)``
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from llmcompressor.core import Event, State
from llmcompressor.modifiers import Modifier
from torch import Tensor, nn

from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.patterns import parse_mask_type
from obert_modifiers.core.pruning.pruning_step import StepResult, second_order_step_
from obert_modifiers.core.pruning.sampling import GradientSource, SampleRequest
from obert_modifiers.core.pruning.targets import Target


def calibration_source(loader: Any, device: torch.device) -> GradientSource:
    """Return gradients of the model's own loss on the calibration data.

    Args:
        loader: Batches, dicts of tensors; without ``labels``, the inputs are the
            labels, as for causal language models.
        device: Where the model is.
    """

    def batches(request: SampleRequest) -> Iterator[dict[str, Tensor]]:
        for batch in loader:
            yield {name: values.to(device) for name, values in batch.items()}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**{"labels": batch["input_ids"], **batch}).loss

    return GradientSource(batches, loss, batch_size=lambda b: len(b["input_ids"]))


class OBERTModifier(Modifier):
    """Prune linear weights by second-order saliency when the calibration begins.

    Modifiers that stand after it in the recipe calibrate the pruned model.
    """

    sparsity: float
    mask_type: str = "unstructured"
    targets: list[str] = ["re:.*layers?[.].*"]
    num_grads: int = 256
    fisher_block_size: int = 48
    damp_fraction: float = 0.01
    global_sparsity: bool = True
    _result: StepResult | None = None

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Return True, after the weights were found and checked."""
        pattern = parse_mask_type(self.mask_type)
        for target in self._find(state.model):
            target.layout(pattern)
        return True

    def _find(self, model: nn.Module) -> list[Target]:
        found = [
            Target(f"{name}.weight", module.weight)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and any(re.match(one.removeprefix("re:"), name) for one in self.targets)
        ]
        if not found:
            raise ValueError(f"targets={self.targets} match no linear layer")
        return found

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        """Prune; writes the parameters."""
        if self._result is not None:
            return
        targets = self._find(state.model)
        weights = [target.parameter for target in targets]
        self._result = second_order_step_(
            state.model,
            targets,
            [torch.ones_like(w, dtype=torch.bool) for w in weights],
            [self.sparsity] * len(targets),
            global_sparsity=self.global_sparsity,
            config=SecondOrderConfig(
                num_grads=self.num_grads,
                fisher_block_size=self.fisher_block_size,
                damp_fraction=self.damp_fraction,
                pattern=parse_mask_type(self.mask_type),
            ),
            source=calibration_source(state.data.calib, weights[0].device),
        )
