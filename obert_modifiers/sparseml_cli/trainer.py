"""Fixes of SparseML's trainer: gradient samples, saved models, checkpoints."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from obert_modifiers.sparseml_cli.fixes import Patch, fix


@fix("gradient-samples", versions="seen with accelerate 0.27, 0.30, 1.15")
def gradient_samples(patch: Patch) -> None:
    """Gradient sampling builds accelerate's loader again from its attributes and fails.

    The samples come from a plain torch loader over the same data, with the trainer's
    collator, in the batch size of ``grad_sampler_kwargs``; each process has its own.
    The order of the training is not touched.
    """
    from sparseml.transformers.sparsification import trainer as module

    from obert_modifiers.sparseml_cli.sampling import sample_loader

    def builder(self: Any, kwargs: dict[str, Any] | None = None) -> Iterator[Any]:
        dataset = self.get_train_dataloader().dataset
        loader = sample_loader(self, dataset, dict(kwargs or {}))
        columns = set(self._model_signature_columns)
        while True:  # as SparseML's: who asks says when it is enough
            for batch in loader:
                kept = {k: v for k, v in batch.items() if k in columns}
                smooth = self.label_smoother is not None and "labels" in kept
                labels = kept.pop("labels") if smooth else None
                yield [], self._prepare_inputs(kept), labels

    patch(module.RecipeManagerTrainerInterface, "_data_loader_builder", builder)


@fix("safetensors-reload", versions="transformers 4.35 and later")
def safetensors_reload(patch: Patch) -> None:
    """After a change of structure the weights are looked for in `pytorch_model*.bin`.

    transformers writes safetensors. SparseML has a function of its own that reads
    both, for language models; it is used for all.
    """
    from sparseml.pytorch.model_load.helpers import reload_model_state
    from sparseml.transformers.sparsification import trainer as module

    original = module.RecipeManagerTrainerInterface._reload_model_state

    def reload(self: Any, load_path: str, orig_state_dict: dict[str, Any]) -> bool:
        folder = Path(load_path) if load_path else None
        if folder is None or not any(folder.glob("*.safetensors")):
            return original(self, load_path, orig_state_dict)
        return reload_model_state(self.model, load_path, orig_state_dict)

    patch(module.RecipeManagerTrainerInterface, "_reload_model_state", reload)


@fix("shared-buffers", versions="transformers 4.35 and later")
def shared_buffers(patch: Patch) -> None:
    """SparseML's quantized layers hold buffers twice, which safetensors refuses.

    Copies are saved, each under its name.
    """
    from sparseml.transformers.sparsification import trainer as module

    from obert_modifiers.modifiers._targets import unwrap

    original = module.TransformersTrainer._save

    def save(self: Any, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = unwrap(self.model)
        quantized = any(hasattr(one, "fake_quant_enabled") for one in model.modules())
        if quantized and state_dict is None:
            # Not the parameters: transformers knows which of them are tied.
            buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
            state_dict = {
                name: value.clone() if name in buffers else value
                for name, value in model.state_dict().items()
            }
        original(self, output_dir, state_dict)

    patch(module.TransformersTrainer, "_save", save)


@fix("saved-structure", versions="all")
def saved_structure(patch: Patch) -> None:
    """A folder's recipe is applied again on loading, and 8-bit ranges are not saved.

    The ranges of `QATModifier` are written beside the model (`quantization.json`) and
    put back where a saved model is evaluated or exported. Layers that
    `LayerDropModifier` has dropped before are not dropped again.
    """
    from sparseml.transformers.sparsification import trainer as module

    from obert_modifiers.core.quantization import scales
    from obert_modifiers.core.quantization.layers import Quantized
    from obert_modifiers.modifiers import LayerDropModifier
    from obert_modifiers.modifiers._targets import unwrap

    interface = module.RecipeManagerTrainerInterface
    apply_manager, save_model = interface.apply_manager, interface.save_model

    def apply(self: Any, epoch: float, checkpoint: str | None) -> bool:
        first = not self.manager_applied and not getattr(self, "_obert_loaded", False)
        if self.arch_manager and first:
            for modifier in self.arch_manager.iter_modifiers():
                if isinstance(modifier, LayerDropModifier):
                    modifier.adopt(self.model)
        applied = apply_manager(self, epoch, checkpoint)
        if first and math.isinf(epoch) and os.path.isdir(self.model_state_path):
            model = unwrap(self.model)
            scales.load_quantization_(model, self.model_state_path)
            for layer in model.modules():
                if isinstance(layer, Quantized):
                    layer.qconfig = True  # SparseML's export looks for it
        self._obert_loaded = True
        return applied

    def save(
        self: Any, output_dir: str | None = None, _internal_call: bool = True
    ) -> None:
        save_model(self, output_dir=output_dir, _internal_call=_internal_call)
        if self.args.should_save:
            folder = output_dir or self.args.output_dir
            scales.save_quantization(unwrap(self.model), folder)

    patch(interface, "apply_manager", apply)
    patch(interface, "save_model", save)


@fix("resume-epoch", versions="all")
def resume_epoch(patch: Patch) -> None:
    """A resumed run begins its recipe at epoch 0, and Adam's averages are lost.

    The recipe goes on at the checkpoint's step, with the masks, ranges and schedules
    of its modifiers, which are saved in `recipe_state.pt`; the optimizer gets the
    state that was loaded for it.
    """
    from sparseml.pytorch.optim import ScheduledOptimizer
    from sparseml.transformers.sparsification import trainer as module

    from obert_modifiers.sparseml_cli.recipe_state import go_on, write_state

    interface = module.RecipeManagerTrainerInterface
    saving = module.TransformersTrainer
    apply_manager, create_optimizer = (
        interface.apply_manager,
        interface.create_optimizer,
    )
    save_checkpoint = saving._save_checkpoint

    def apply(self: Any, epoch: float, checkpoint: str | None) -> bool:
        self._obert_checkpoint = checkpoint
        return apply_manager(self, epoch, checkpoint)

    def create(self: Any) -> Any:
        created = create_optimizer(self)
        checkpoint = getattr(self, "_obert_checkpoint", None)
        if self.manager is not None and checkpoint:
            go_on(self, Path(checkpoint))
        return created

    def save(self: Any, model: Any, trial: Any, metrics: Any = None) -> None:
        save_checkpoint(self, model, trial, metrics=metrics)
        folder = Path(self._get_output_dir(trial=trial))
        if self.manager is not None and self.args.should_save:
            step = self.state.global_step
            write_state(self.manager, folder / f"checkpoint-{step}")

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        self._wrapper.wrapped_optimizer.load_state_dict(state_dict)

    def state_dict(self: Any) -> dict[str, Any]:
        return self._wrapper.wrapped_optimizer.state_dict()

    patch(interface, "apply_manager", apply)
    patch(interface, "create_optimizer", create)
    patch(saving, "_save_checkpoint", save)
    patch(ScheduledOptimizer, "load_state_dict", load_state_dict)
    patch(ScheduledOptimizer, "state_dict", state_dict)


@fix("early-stopping", versions="all")
def early_stopping(patch: Patch) -> None:
    """SparseML's trainer tells a recipe nothing of its evaluations.

    They are told to `EarlyStoppingModifier`, which may end the training, and are of
    the average that `WeightAveragingModifier` has.
    """
    from sparseml.transformers.sparsification import trainer as module

    from obert_modifiers.modifiers import EarlyStoppingModifier
    from obert_modifiers.modifiers._targets import unwrap
    from obert_modifiers.modifiers.averaging import averaged

    original = module.TrainerInterface.evaluate

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        running = self.manager_initialized and not self.manager_finalized
        modifiers = list(self.manager.iter_modifiers()) if running else []
        with averaged(modifiers, self.model):
            metrics = original(self, *args, **kwargs)
        for modifier in modifiers:
            if isinstance(modifier, EarlyStoppingModifier):
                named = {k.removeprefix("eval_"): v for k, v in metrics.items()}
                if modifier.evaluated(unwrap(self.model), named, self.state.epoch):
                    self.control.should_training_stop = True
        return metrics

    patch(module.TrainerInterface, "evaluate", evaluate)
