"""Load, check and drive a recipe: a thin wrapper around the host's manager."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from obert_modifiers.compat.replace import replaced
from obert_modifiers.core.pruning.report import PruneReport
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.host.bases import (
    Modifier,
    ScheduledModifierManager,
    silent_loggers,
)
from obert_modifiers.host.state import cannot_be_saved, known, load_state, state_of
from obert_modifiers.modifiers._losses import with_distillation
from obert_modifiers.modifiers._targets import unwrap
from obert_modifiers.modifiers._teacher import TeacherModifier
from obert_modifiers.modifiers.averaging import WeightAveragingModifier, averaged
from obert_modifiers.modifiers.early_stopping import EarlyStoppingModifier
from obert_modifiers.modifiers.layer_drop import LayerDropModifier
from obert_modifiers.recipe import changes, environment
from obert_modifiers.recipe.cross import shared_weights
from obert_modifiers.recipe.load import LoadedRecipe, from_modifiers, load_recipe
from obert_modifiers.recipe_text.problems import Problem, RecipeError

__all__ = ["Problem", "RecipeError", "RecipeManager"]

_SPARSEML_NAME = "<SparseML manager>"
_LOGGER = logging.getLogger(__name__)


class RecipeManager:
    """A checked recipe that can be applied to a model while it trains.

    The order of the calls is SparseML's: :meth:`initialize` once (and before it, where
    the recipe drops layers, :meth:`apply_structure` before an optimizer is made), then
    for every optimizer step :meth:`loss`, :meth:`update`, :meth:`pre_step`, the
    optimizer's own step, :meth:`post_step`; :meth:`finalize` at the end. Epochs are
    fractions, counted in optimizer steps.

    Attributes:
        host: SparseML's manager, which holds the modifiers.
        source: Path of the recipe as it was given, or what stands for it.
        text: The recipe as it is run: every variable and expression is worked out, and
            loading it again gives the same modifiers.
    """

    def __init__(self, recipe: LoadedRecipe, host: ScheduledModifierManager):
        """Use :meth:`from_recipe` or :meth:`from_sparseml`."""
        self.host = host
        self.source = recipe.file
        self.text = recipe.text
        self._recipe = recipe
        self._sparsity: float | None = 0.0
        self._epoch = 0.0
        self._dense: Module | None = None
        self._restructured = False

    @classmethod
    def from_recipe(
        cls,
        recipe: str | Path,
        recipe_args: Mapping[str, Any] | str | None = None,
    ) -> "RecipeManager":
        """Load a recipe and check it completely, before any training.

        Args:
            recipe: Path of a ``.yaml``, ``.yml`` or ``.md`` file, the last with front
                matter, or the recipe's text, known by its line breaks.
            recipe_args: Values for the recipe's variables: a dict, a JSON object as
                text, or ``name=value`` pairs separated by commas.

        Raises:
            RecipeError: With all faults.
        """
        with replaced(None):  # where SparseML is missing, ours stand in
            loaded = load_recipe(recipe, recipe_args)
        for change in loaded.changes:
            _LOGGER.warning("%s", change)
        modifiers = loaded.groups if loaded.staged else loaded.groups[""]
        return cls(loaded, ScheduledModifierManager(modifiers=modifiers))

    @classmethod
    def from_sparseml(cls, manager: ScheduledModifierManager) -> "RecipeManager":
        """Take over a manager that SparseML has loaded."""
        return cls(from_modifiers(manager.modifiers, _SPARSEML_NAME), manager)

    @property
    def modifiers(self) -> list[Modifier]:
        """All modifiers, SparseML's and ours, as they run, stage after stage."""
        return list(self.host.iter_modifiers())

    def _of(self, cls: type) -> list[Any]:
        return [one for one in self.modifiers if isinstance(one, cls)]

    @property
    def pruning(self) -> list[Modifier]:
        """The modifiers that prune."""
        return self.host.pruning_modifiers

    @property
    def distillation(self) -> list[Modifier]:
        """The modifiers that distil."""
        return self.host.distillation_modifiers

    @property
    def early_stopping(self) -> EarlyStoppingModifier | None:
        """The modifier that ends the training early, if the recipe has one."""
        return next(iter(self._of(EarlyStoppingModifier)), None)

    @property
    def averages(self) -> bool:
        """Whether the recipe ends with an average of the weights."""
        return bool(self._of(WeightAveragingModifier))

    @property
    def teacher(self) -> str | None:
        """The teacher that the recipe names: a folder or hub id, self or disable.

        Whoever runs the recipe loads a folder and passes the model.
        """
        named = (getattr(modifier, "teacher", None) for modifier in self.distillation)
        return next((name for name in named if isinstance(name, str)), None)

    def _teacher_or(self, given: Module | str | None) -> Module | str | None:
        return self.teacher if given is None else given

    @property
    def max_epochs(self) -> float | None:
        """Epoch at which the last modifier ends, rounded up; None if left open."""
        epochs = self.host.max_epochs
        return float(epochs) if epochs > 0 else None

    @property
    def sets_learning_rate(self) -> bool:
        """Whether a modifier of the recipe sets the learning rate."""
        return bool(self.host.learning_rate_modifiers)

    @property
    def events(self) -> list[PruneReport]:
        """Reports of our modifiers' pruning events so far, in their order."""
        found = [one for m in self.modifiers for one in getattr(m, "events", ())]
        return sorted(found, key=lambda event: (event.epoch, event.step))

    def check_model(self, model: Module) -> None:
        """Check what the recipe names against parameters and layers of the model."""
        self._recipe.check(lambda one: environment.model_faults(one, model))
        self._recipe.refuse(shared_weights(self._recipe.placed, model))

    def check_data(self, num_train_samples: int) -> None:
        """Check that there is a training sample for each gradient the recipe wants."""
        self._recipe.check(lambda one: environment.data_faults(one, num_train_samples))

    def check_steps(self, steps_per_epoch: int) -> None:
        """Check that what the recipe does several times in an epoch has the steps."""
        place = steps_per_epoch, self.max_epochs
        self._recipe.check(lambda one: environment.step_faults(one, *place))

    def check_teacher(self, teacher: Module | str | None) -> None:
        """Check that there is a teacher if the recipe distils."""
        given = self._teacher_or(teacher)
        self._recipe.check(lambda one: environment.teacher_faults(one, given))

    def check_output(self, output: str) -> None:
        """Check that what the recipe distils is the output that the model gives."""
        self._recipe.check(lambda one: environment.output_faults(one, output))

    def apply_structure(
        self,
        model: Module,
        *,
        teacher: Module | str | None = None,
        loss: Callable[[Module], float] | None = None,
    ) -> None:
        """Drop the layers that the recipe drops, of all its stages, in place.

        To be called before anything holds the model's parameters or looks for their
        names: an optimizer, a wrapper for parallel training, :meth:`check_model`.
        :meth:`initialize` does it first where it was not called. For the teacher
        ``"self"`` a copy of the model as it is now is kept. ``loss`` gives the loss of
        a model on calibration samples, the same in all processes, by which ``choice:
        measured`` goes. Raises ``RecipeError`` if
        the model does not have the layers.
        """
        drops = self._of(LayerDropModifier)
        if self._restructured or not drops:
            return
        if self._teacher_or(teacher) == "self":
            self._dense = deepcopy(unwrap(model))
        for drop in drops:
            self._recipe.check(
                lambda one: environment.model_faults(one, model), only=drop
            )
            drop.initialize(model, loggers=silent_loggers(), calibration_loss=loss)
        self._restructured = True

    def _dense_teacher(self, named: Module | str | None) -> Module | str | None:
        if named != "self" or not self._restructured:
            return named
        if self._dense is None:
            raise RuntimeError(
                "teacher=self comes after the layers were dropped; expected the dense "
                "model; pass teacher to apply_structure too"
            )
        dense, self._dense = self._dense, None
        return dense

    def initialize(
        self,
        model: Module,
        *,
        epoch: float = 0.0,
        gradient_source: GradientSource | None = None,
        grad_sampler: Mapping[str, Any] | None = None,
        teacher: Module | str | None = None,
        loggers: Any = None,
    ) -> None:
        """Attach the modifiers to a model, those that change its structure first.

        Args:
            model: The model.
            epoch: Epoch to start from; ``inf`` applies the whole recipe at once.
            gradient_source: Where our second-order modifiers get their gradients.
            grad_sampler: SparseML's ``data_loader_builder`` and ``loss_function``.
            teacher: The dense model to distil from, ``"self"`` or ``"disable"``; None
                for what the recipe names.
            loggers: SparseML's loggers; None logs to nobody.
        """
        self.apply_structure(model, teacher=teacher)
        self._epoch = epoch
        if gradient_source is not None:
            gradient_source = with_distillation(
                gradient_source,
                self._of(TeacherModifier),
                lambda: self._epoch,
            )
        offered = {
            "gradient_source": gradient_source,
            "grad_sampler": grad_sampler,
            "distillation_teacher": self._dense_teacher(self._teacher_or(teacher)),
        }
        given = {key: value for key, value in offered.items() if value is not None}
        # An empty manager of loggers counts as none for SparseML.
        loggers = loggers or silent_loggers()
        self.host.initialize(model, epoch=epoch, loggers=loggers, **given)
        self._sparsity = None

    def update(
        self, model: Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Let the modifiers act that are due, before the optimizer step."""
        if any(m.update_ready(epoch, steps_per_epoch) for m in self.pruning):
            self._sparsity = None
        self._epoch = epoch
        self.host.update(model, optimizer, epoch, steps_per_epoch)

    def pre_step(
        self, model: Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Tell the modifiers that the optimizer step comes next."""
        self.host.optimizer_pre_step(model, optimizer, epoch, steps_per_epoch)

    def post_step(
        self, model: Module, optimizer: Any, epoch: float, steps_per_epoch: int
    ) -> None:
        """Tell the modifiers that the optimizer step is done; masks are applied."""
        self.host.optimizer_post_step(model, optimizer, epoch, steps_per_epoch)

    def loss(
        self,
        loss: Tensor,
        model: Module,
        optimizer: Any,
        epoch: float,
        steps_per_epoch: int,
        *,
        student_outputs: Any,
        student_inputs: Any,
    ) -> Tensor:
        """Return the loss to train with: the task's, changed by those that distil.

        ``student_outputs`` is what the model returned for this batch,
        ``student_inputs`` the batch as the teacher shall get it.
        """
        batch = {"student_outputs": student_outputs, "student_inputs": student_inputs}
        place = (model, optimizer, epoch, steps_per_epoch)
        return self.host.loss_update(loss, *place, **batch)

    def averaged(self, model: Module) -> AbstractContextManager[None]:
        """Have the average of the weights in the model while it is evaluated.

        Where no modifier averages yet, the model stays as it is.
        """
        return averaged(self._of(WeightAveragingModifier), model)

    def evaluated(
        self, model: Module, metrics: Mapping[str, float], epoch: float
    ) -> bool:
        """Tell the recipe what an evaluation found; return whether training ends."""
        stopper = self.early_stopping
        return stopper is not None and stopper.evaluated(model, metrics, epoch)

    def restore_best(self, model: Module) -> bool:
        """Go back to the best evaluation's weights, if the recipe says so.

        :meth:`finalize` does it too.
        """
        stopper = self.early_stopping
        return stopper is not None and stopper.restore(model)

    def finalize(self, model: Module) -> None:
        """Let go of the model; :meth:`sparsity` keeps its last value."""
        self.sparsity()
        self.restore_best(model)
        # Before ranges are fixed, which then are those of the average.
        for averaging in self._of(WeightAveragingModifier):
            averaging.leave(model)
        self.host.finalize(model)
        self._restructured, self._dense = False, None

    def sparsity(self) -> float:
        """Return the share of the pruning modifiers' weights that is pruned now.

        Weights of several modifiers count once; masks switched off keep everything.
        """
        if self._sparsity is None:
            self._sparsity = _masked_share(self.pruning)
        return self._sparsity

    def _named(self) -> dict[str, Modifier]:
        """Name the modifiers by SparseML's identifiers, made different by numbers."""
        found: dict[str, Modifier] = {}
        for modifier in self.modifiers:
            name, number = modifier.identifier(), 2
            while name in found:
                name, number = f"{modifier.identifier()}-{number}", number + 1
            found[name] = modifier
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all modifiers, ours and SparseML's."""
        self.check_can_be_saved()
        return {name: state_of(modifier) for name, modifier in self._named().items()}

    @property
    def can_be_saved(self) -> bool:
        """Whether the state of each modifier is known."""
        return not cannot_be_saved(self.modifiers)

    def check_can_be_saved(self) -> None:
        """Check that the state of each modifier is known."""
        unknown = cannot_be_saved(self.modifiers)
        if unknown:
            raise ValueError(
                f"modifier={', '.join(unknown)} has a state that cannot be saved; "
                f"expected ours, or of SparseML's {', '.join(known())}; replace it or "
                "train without saving"
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; call it after :meth:`initialize`."""
        found = self._named()
        if set(found) != set(state):
            missing = ", ".join(sorted(set(found) - set(state))) or "none"
            extra = ", ".join(sorted(set(state) - set(found))) or "none"
            raise ValueError(
                f"state is of another recipe (missing: {missing}; extra: {extra}); "
                f"expected the modifiers of {self.source}; resume with the recipe of "
                "the state"
            )
        for name, modifier in found.items():
            load_state(modifier, state[name])
        self._sparsity = None

    def load_changed_state_dict(
        self,
        state: Mapping[str, Any],
        before: str,
        *,
        step: int,
        steps_per_epoch: int,
        allowed: bool,
    ) -> None:
        """Continue from a state of a recipe that was edited since, where that is safe.

        ``before`` is the :attr:`text` of that recipe, ``step`` counts the optimizer
        steps that are made. Raises ``ValueError`` with what differs where that is not
        safe, or not ``allowed``; other comments make no other recipe.
        """
        # A line break tells a text from a path; a recipe of one line may have none.
        # A run without a recipe has an empty one.
        earlier = before.strip() and RecipeManager.from_recipe(f"{before}\n")
        old, new = earlier._named() if earlier else {}, self._named()
        if set(old) == set(new):
            self.load_state_dict(state)
            return
        shown = changes.differences(before, self.text)
        if not allowed:
            raise ValueError(
                f"recipe={self.source} is another one than the checkpoint's; expected "
                "the same; resume with that one, or add --recipe_changed allow\n"
                f"{shown}"
            )
        pairs = changes.pair_up(old, new)
        now = changes.Now(step, steps_per_epoch, self.max_epochs)
        problems = changes.unsafe_edits(pairs, state, now)
        if not problems:
            for pair in filter(changes.keeps_state, pairs):
                load_state(pair.new, state[pair.name])
                problems += filter(None, [changes.resume_schedule_(pair, now)])
        if problems:
            raise ValueError(
                f"recipe={self.source} was edited in a way that a run cannot take up: "
                f"{'; '.join(problems)}; expected edits of what is still to come; "
                f"resume with the recipe as it was\n{shown}"
            )
        _LOGGER.warning("going on with an edited recipe:\n%s", shown)
        self._sparsity = None

    def save(self, path: str | Path) -> None:
        """Write :attr:`text` to a file, and its folder where it is missing."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text, encoding="utf-8")


def _masked_share(modifiers: list[Any]) -> float:
    """Return the share of weights that some modifiers' masks prune."""
    kept: dict[str, Tensor] = {}
    for modifier in modifiers:
        masks = getattr(modifier, "module_masks", None)
        if masks is None:
            continue
        names = zip(masks.layer_names, masks.param_names, strict=True)
        for name, mask in zip(names, masks.param_masks, strict=True):
            mask = mask.bool() if masks.enabled else torch.ones_like(mask).bool()
            full = ".".join(name)
            kept[full] = kept[full] & mask if full in kept else mask
    total = sum(mask.numel() for mask in kept.values())
    left = sum(int(mask.sum()) for mask in kept.values())
    return (total - left) / total if total else 0.0
