"""A recipe inside the Hugging Face ``Trainer``, as one of its callbacks."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from obert_modifiers.core.losses import (
    classification_loss,
    multi_label_loss,
    regression_loss,
    token_loss,
)
from obert_modifiers.core.outputs import MULTI_LABEL, REGRESSION, logits_of, problem_of
from obert_modifiers.core.quantization import scales
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training.batches import TaskData, gradient_source
from obert_modifiers.training.checkpoint import name_of, read_state, write_state
from obert_modifiers.training.environment import refusal
from obert_modifiers.training.saving import RECIPE, check_sparsity
from obert_modifiers.training.stepper import RecipeStepper

STATE = "recipe_state"  # beside the Trainer's own checkpoints


def sample_losses(
    outputs: Any, batch: Mapping[str, Tensor], problem: str | None = None
) -> Tensor:
    """Return the loss of each sample for the usual heads of classification.

    Args:
        outputs: With logits (k, classes), (k, 1) for a number, or (k, T, classes).
        batch: With ``labels`` (k,), (k, classes) of 0 and 1, or (k, T) with -100 where
            a token does not count.
        problem: ``problem_type`` of the model's configuration; None goes by logits and
            labels as transformers does.

    Returns:
        (k,) in float32: cross-entropy, squared error, the mean over the labels of the
        binary cross-entropy, or that over the labelled tokens; 0 where there are none.
    """
    labels = batch["labels"]
    kind = problem_of(logits_of(outputs), labels, problem)
    if kind == REGRESSION:
        return regression_loss(outputs, batch)
    if kind == MULTI_LABEL:
        return multi_label_loss(outputs, batch)
    return (classification_loss if labels.ndim == 1 else token_loss)(outputs, batch)


class RecipeCallback(TrainerCallback):
    """Applies a recipe in ``Trainer.train``.

    To be given to the ``Trainer`` when it is made, as layers are dropped before the
    optimizer knows them. Before each optimizer step the modifiers act, after it masks
    are applied; a step that the optimizer skips does not advance the recipe.
    Distillation changes the loss that the model returns in training. A recipe that
    sets the learning rate sets it over the ``Trainer``'s own schedule. What a recipe
    needs to continue is written into the ``Trainer``'s checkpoints and read from there.

    Args:
        recipe: Path of a recipe, or its text.
        recipe_args: Values for its variables.
        teacher: The dense model, ``"self"``, or None for what the recipe names.
        sample_loss: Called with outputs and batch; gives the loss of each sample,
            (k,), of which second-order pruning takes gradients.
        losses: Called with the model and a batch instead, where the model is not called
            with what the batch holds, as in sentence-transformers' trainers.

    Raises:
        RecipeError: With everything that is wrong with the recipe.
    """

    def __init__(
        self,
        recipe: str | Path,
        recipe_args: Mapping[str, Any] | str | None = None,
        *,
        teacher: nn.Module | str | None = None,
        sample_loss: Callable[[Any, Mapping[str, Tensor]], Tensor] = sample_losses,
        losses: Callable[[nn.Module, Any], Tensor] | None = None,
    ) -> None:
        self.manager = RecipeManager.from_recipe(recipe, recipe_args)
        self._teacher = teacher
        self._sample_loss = sample_loss
        self._losses = losses
        self._stepper: Any = None  # from the begin of the training on
        self._model: Any = None
        self._optimizer: Any = None
        self._rates: list[float] | None = None
        self._hooks: list[Any] = []
        self._batches_left = 0  # micro-batches of the epoch that are still to come
        self._window = 1  # those of this optimizer step
        self._training = False
        self._evaluated: int | None = None  # the step of the last evaluation
        self._scaled = False  # whether the Trainer leaves it to the model to divide
        self._sharers = 1  # by how many it multiplies such a loss then
        self._averaged = ExitStack()  # left after an evaluation
        self._mixed = self._used = 0  # losses made in this step, and trained on

    def save(self, folder: str | Path, model: nn.Module | None = None) -> None:
        """Write what belongs beside a saved model: the recipe, and scales after QAT.

        `model` is the part of the trained model whose weights the folder holds.
        """
        if self._model is None:
            raise RuntimeError(f"folder={folder} has no trained model; expected one")
        self.manager.save(Path(folder) / RECIPE)
        scales.save_quantization(model or self._model, Path(folder))

    def on_init_end(self, args, state, control, **kwargs) -> None:
        model = kwargs["model"]
        named = self.manager.teacher if self._teacher is None else self._teacher
        if self.manager.distillation and named == "self":
            # Now, as a run that is resumed loads other weights later.
            self._teacher = deepcopy(model)
        self.manager.apply_structure(model, teacher=self._teacher)
        self.manager.check_model(model)
        self._model = model

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        model, self._optimizer = kwargs["model"], kwargs["optimizer"]
        loader = kwargs["train_dataloader"]
        if self._model is not model:
            raise ValueError(
                "callback=RecipeCallback was added to a Trainer that exists; expected "
                "it before the optimizer is made; give it in Trainer(callbacks=[...])"
            )
        _need_length(loader)
        steps = max(1, -(-len(loader) // args.gradient_accumulation_steps))
        self._check(args, state, steps)
        self.manager.check_data(len(loader.dataset))
        self.manager.check_steps(steps)
        self.manager.check_teacher(self._teacher)
        # Mixed precision wraps the model's forward function; gradients want it plain.
        forward = getattr(model, "_original_forward", model.forward)
        losses = self._sample_loss
        if losses is sample_losses:
            config = getattr(model, "config", None)
            losses = partial(losses, problem=getattr(config, "problem_type", None))
        data = TaskData(loader.dataset, [], loader.collate_fn, losses, lambda **_: {})
        source = gradient_source(
            data,
            forward,
            args.device,
            seed=args.seed,
            batch_size=args.per_device_train_batch_size,
            losses=self._losses,
        )
        if isinstance(self._teacher, nn.Module):
            self._teacher.to(args.device)
        self._stepper = RecipeStepper(self.manager, model, self._optimizer, steps)
        self.manager.initialize(model, gradient_source=source, teacher=self._teacher)
        if state.global_step:
            self._resume(model, _checkpoint(args, state))
        elif args.save_strategy != "no":
            self.manager.check_can_be_saved()
        self._training = True
        if getattr(args, "average_tokens_across_devices", False):
            self._sharers = max(args.world_size, args.n_gpu)
        if self.manager.distillation:
            self._hooks = [
                model.register_forward_pre_hook(self._take_scaling, with_kwargs=True),
                model.register_forward_hook(self._distil, with_kwargs=True),
            ]

    def _check(self, args: TrainingArguments, state: Any, steps: int) -> None:
        epochs, averages = self.manager.max_epochs, self.manager.averages
        if epochs is not None and round(epochs * steps) != state.max_steps:
            raise ValueError(
                f"num_train_epochs={args.num_train_epochs:g} makes {state.max_steps} "
                f"optimizer steps and the recipe takes {round(epochs * steps)}; "
                f"expected the recipe's {epochs:g} epochs; set num_train_epochs to them"
            )
        if self.manager.early_stopping is not None and args.eval_strategy == "no":
            raise ValueError(
                "eval_strategy=no leaves EarlyStoppingModifier nothing to go by; "
                "expected evaluations; set it to epoch"
            )
        if args.deepspeed or args.fsdp:
            raise ValueError(refusal("DEEPSPEED" if args.deepspeed else "FSDP"))
        if args.load_best_model_at_end and (self.manager.pruning or averages):
            raise ValueError(
                "load_best_model_at_end=True brings back weights from before pruning, "
                "or such as are not averaged; expected False with a recipe that prunes "
                "or averages; set it so"
            )

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        made = state.global_step % self._stepper.steps_per_epoch
        if args.ignore_data_skip:  # each epoch has all its batches
            made = 0
        before = made * args.gradient_accumulation_steps
        self._batches_left = len(kwargs["train_dataloader"]) - before

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self._window = min(args.gradient_accumulation_steps, self._batches_left)
        self._batches_left -= self._window

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self._mixed and not self._used:
            raise ValueError(
                "compute_loss gives a loss without the model's own, so that nothing is "
                "distilled; expected one that is made of it; use outputs.loss there"
            )
        self._mixed = self._used = 0
        groups = self._optimizer.param_groups
        if self._rates is not None:  # the Trainer's schedule has changed them since
            for group, rate in zip(groups, self._rates, strict=True):
                group["lr"] = rate
        self._stepper.before()
        # Until the recipe sets a rate, it is that of the Trainer's schedule.
        if any(one.started for one in self.manager.host.learning_rate_modifiers):
            self._rates = [group["lr"] for group in groups]

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._stepper.after()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        # The Trainer's own callback, which comes first, has decided by now.
        if self._training and control.should_evaluate:
            self._averaged.enter_context(self.manager.averaged(self._model))

    on_epoch_end = on_step_end

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self._averaged.close()
        if not self._training:
            return
        again, self._evaluated = self._evaluated == state.global_step, state.global_step
        if again and (self.manager.averages or self.manager.early_stopping is not None):
            raise ValueError(
                "eval_dataset has several data sets, of which an average and early "
                "stopping see the first; expected one; evaluate on others afterwards"
            )
        metrics = kwargs["metrics"].items()
        figures = {name.removeprefix("eval_"): value for name, value in metrics}
        if self.manager.evaluated(self._model, figures, self._stepper.epoch):
            control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero or not self._training:
            return
        folder = _checkpoint(args, state)
        saved = {
            "step": self._stepper.steps,
            "rates": self._rates,
            "sparsity": self.manager.sparsity(),
            "trained": [p.requires_grad for p in self._model.parameters()],
            "modifiers": self.manager.state_dict(),
        }
        write_state(folder, STATE, saved)
        self.save(folder)

    def _resume(self, model: nn.Module, folder: Path) -> None:
        """Bring the recipe to where a checkpoint was written."""
        if not (folder / f"{STATE}.json").is_file():
            raise ValueError(
                f"resume_from_checkpoint={folder} has no {STATE}.json; expected a "
                "checkpoint of RecipeCallback; resume with the run's own output_dir"
            )
        saved = read_state(folder, STATE)
        # The modifiers may write weights, so those of the checkpoint come after them.
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.manager.load_changed_state_dict(
            saved["modifiers"],
            (folder / RECIPE).read_text(encoding="utf-8"),
            step=saved["step"],
            steps_per_epoch=self._stepper.steps_per_epoch,
            allowed=False,
        )
        model.load_state_dict(weights)
        for parameter, trained in zip(
            model.parameters(), saved.get("trained", ()), strict=False
        ):
            parameter.requires_grad_(trained)
        self._stepper.steps, self._rates = saved["step"], saved["rates"]
        check_sparsity(self.manager, saved["sparsity"])

    def on_train_end(self, args, state, control, **kwargs) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._training = [], False
        self._averaged.close()
        self.manager.finalize(kwargs["model"])

    def _take_scaling(self, model: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Have the model return a mean, which distillation can be mixed with."""
        self._scaled = kwargs.pop("num_items_in_batch", None) is not None
        return args, kwargs

    def _count_use(self, grad: Tensor) -> None:
        self._used += 1

    def _distil(
        self, model: nn.Module, args: tuple, kwargs: dict[str, Any], outputs: Any
    ) -> Any:
        """Mix the teacher's loss into the one that the model returns."""
        if not (model.training and torch.is_grad_enabled()):
            return outputs
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if loss is None:
            raise ValueError(
                "loss=None came from the model, so that nothing is distilled; expected "
                "labels and a model that returns a dict; leave compute_loss_func, "
                "label_smoothing_factor and return_dict=False out"
            )
        mixed = self.manager.loss(
            loss,
            model,
            self._optimizer,
            self._stepper.epoch,
            self._stepper.steps_per_epoch,
            student_outputs=outputs,
            student_inputs=kwargs,
        )
        if mixed is not loss:
            self._mixed += 1
            mixed.register_hook(self._count_use)
        # The Trainer does not divide a loss that knows its number of items, and
        # multiplies it by the processes among which that number is shared.
        divisor = self._window * self._sharers
        outputs["loss"] = mixed / divisor if self._scaled else mixed
        return outputs


def _need_length(loader: Any) -> None:
    try:
        len(loader), len(loader.dataset)
    except TypeError as error:
        raise ValueError(
            f"train_dataset={type(loader.dataset).__name__} has no length; expected "
            "data with len(); load it without streaming"
        ) from error


def _checkpoint(args: TrainingArguments, state: Any) -> Path:
    return Path(args.output_dir) / name_of(state.global_step)
