"""oBERT: gradual second-order pruning with an update of the remaining weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from obert_modifiers.core.options import (
    DAMP_GRID,
    FISHER_DTYPES,
    SELECTIONS,
    UPDATES,
    SecondOrderConfig,
)
from obert_modifiers.core.patterns import check_block_size
from obert_modifiers.host.bases import PyTorchModifierYAML, recipe_key
from obert_modifiers.modifiers._gradual import GradualPruningModifier
from obert_modifiers.modifiers._losses import FISHER_LOSSES
from obert_modifiers.modifiers._second_order import (
    AUTO,
    SecondOrder,
    read_damping,
)
from obert_modifiers.modifiers._targets import ALL_ENCODER
from obert_modifiers.modifiers._validate import (
    as_bytes,
    as_choice,
    as_count,
    as_flag,
)

if TYPE_CHECKING:
    from torch import nn

    from obert_modifiers.core.distributed.sharding import MemoryPlan
    from obert_modifiers.core.pruning.pruning_step import StepResult


@PyTorchModifierYAML()
class OBERTPruningModifier(GradualPruningModifier):
    """Prune by second-order saliency, gradually, and update what remains.

    Kurtic et al. 2022 (oBERT), sections 3.1 to 3.4. The recipe keys are those of
    SparseML's ``OBSPruningModifier`` and these: ``damp_fraction``,
    ``grad_granularity``, ``fisher_loss``, ``selection``, ``update``, ``first_order``,
    ``min_density``, ``fisher_dtype`` and ``memory_budget``. With ``batch`` gradients,
    ``independent`` selection and update, and an absolute ``damp`` it is that method;
    the defaults here prune to a lower loss. ``fisher_block_size`` is a multiple of the
    group size of ``mask_type``.

    Needs at ``initialize`` either ``gradient_source``, a
    :class:`~obert_modifiers.core.pruning.sampling.GradientSource`, or SparseML's
    ``grad_sampler`` dict. Hooks run in the order of
    :class:`~obert_modifiers.modifiers._gradual.GradualPruningModifier`.

    Sample YAML::

        !OBERTPruningModifier
            init_sparsity: 0.7
            final_sparsity: 0.9
            start_epoch: 2.0
            end_epoch: 26.0
            update_frequency: 4.0
            params: __ALL_ENCODER__
            num_grads: 1024
            fisher_block_size: 48
            damp_fraction: 0.01
            grad_sampler_kwargs:
                batch_size: 32
    """

    num_grads = recipe_key("num_grads", "Gradients m of the Fisher approximation.")
    damp = recipe_key("damp", "Absolute dampening.")
    damp_fraction = recipe_key("damp_fraction", "Dampening over the mean diagonal.")
    fisher_block_size = recipe_key("fisher_block_size", "Width B of a Fisher block.")
    grad_sampler_kwargs = recipe_key("grad_sampler_kwargs", "Options of the loader.")
    num_recomputations = recipe_key("num_recomputations", "Sub-steps of an event.")
    grad_granularity = recipe_key("grad_granularity", "sample or batch.")
    selection = recipe_key("selection", "independent or greedy.")
    fisher_dtype = recipe_key("fisher_dtype", "Precision of the Fisher's sums.")
    fisher_loss = recipe_key("fisher_loss", "task, distillation or train.")
    first_order = recipe_key("first_order", "Whether the mean gradient counts.")
    memory_budget = recipe_key("memory_budget", "Memory that an event may take.")

    def __init__(
        self,
        init_sparsity: float | str,
        final_sparsity: float | dict[float, list[str]],
        start_epoch: float,
        end_epoch: float,
        update_frequency: float,
        params: str | Sequence[str] | None = ALL_ENCODER,
        leave_enabled: bool = True,
        inter_func: str = "cubic",
        global_sparsity: bool = True,
        mask_type: str = "unstructured",
        min_density: float = 0.0,
        num_grads: int = 1024,
        damp: float | str | None = None,
        damp_fraction: float | None = None,
        fisher_block_size: int = 48,
        grad_sampler_kwargs: dict[str, Any] | None = None,
        num_recomputations: int = 1,
        grad_granularity: str = "sample",
        selection: str = "greedy",
        update: str = "joint",
        fisher_dtype: str = "float64",
        fisher_loss: str = "task",
        first_order: bool = False,
        memory_budget: int | str | None = None,
    ) -> None:
        """Check and keep the recipe's keys.

        Args:
            init_sparsity: Sparsity of the first event, or ``__FROM_PARAM__``.
            final_sparsity: Sparsity of the last event in [0, 1], or a mapping from
                sparsities to lists of parameters.
            start_epoch: Epoch of the first event.
            end_epoch: Epoch of the last event.
            update_frequency: Epochs from one event to the next; -1 for every step.
            params: Names, ``re:`` patterns or tokens of the parameters to prune.
            leave_enabled: True keeps the masks on after ``end_epoch``.
            inter_func: linear, cubic or inverse_cubic.
            global_sparsity: True for one threshold over all parameters.
            mask_type: Structure of the sparsity: ``unstructured``, ``block4``,
                ``block:RxC`` or ``N:M``, as in ``2:4``.
            min_density: Share of its weights that each parameter keeps at least.
            num_grads: Gradients m, over all processes.
            damp: Absolute dampening as in oBERT equation (2), or ``auto`` for the
                fraction of :data:`~obert_modifiers.core.options.DAMP_GRID` that
                leaves the lowest loss on 256 other training samples, at each event.
            damp_fraction: Dampening as a fraction of the mean Fisher diagonal over
                the living weights; 0.01 where neither is given.
            fisher_block_size: Width B of a Fisher block.
            grad_sampler_kwargs: Options of the loader of gradient samples, such as
                ``batch_size``.
            num_recomputations: Sub-steps of an event, each with a fresh Fisher.
            grad_granularity: ``sample`` for the gradient of each sample, ``batch``
                for that of a batch's mean loss, as in SparseML.
            selection: ``independent`` or ``greedy``.
            update: ``joint`` or ``independent``.
            fisher_dtype: ``float64``, or ``float32`` for half the memory and less
                time, where the dampening is not far below the gradients.
            fisher_loss: Loss whose gradients are taken: ``task``, ``distillation``,
                or ``train`` for the mix of both that is trained at the time.
            first_order: True takes the mean gradient into account, for a model that
                is not at a minimum.
            memory_budget: Memory that an event may take beside the model, in bytes or
                as in ``8GB``, per process; where the Fisher does not fit, it is
                collected in several turns, with the same masks. Nine tenths of what
                is free where it is not given.

        Raises:
            ValueError: If a value breaks its rule.
        """
        super().__init__(
            params=params,
            init_sparsity=init_sparsity,
            final_sparsity=final_sparsity,
            start_epoch=start_epoch,
            end_epoch=end_epoch,
            update_frequency=update_frequency,
            leave_enabled=leave_enabled,
            inter_func=inter_func,
            global_sparsity=global_sparsity,
            mask_type=mask_type,
            min_density=min_density,
        )
        self._damp, self._damp_fraction = read_damping(damp, damp_fraction)
        self._num_grads = as_count("num_grads", num_grads)
        self._fisher_block_size = as_count("fisher_block_size", fisher_block_size)
        check_block_size(self._fisher_block_size, self._pattern)
        self._num_recomputations = as_count("num_recomputations", num_recomputations)
        self._grad_granularity = as_choice(
            "grad_granularity", grad_granularity, ("sample", "batch")
        )
        self._selection = as_choice("selection", selection, SELECTIONS)
        self._fisher_dtype = as_choice("fisher_dtype", fisher_dtype, FISHER_DTYPES)
        self._fisher_loss = as_choice("fisher_loss", fisher_loss, FISHER_LOSSES)
        self._first_order = as_flag("first_order", first_order)
        self._memory_budget = memory_budget
        self._budget_bytes = (
            None if memory_budget is None else as_bytes("memory_budget", memory_budget)
        )
        self._update_rule = as_choice("update", update, UPDATES)
        self._grad_sampler_kwargs = _as_options(grad_sampler_kwargs)
        self._engine = SecondOrder(self._config(), self._fisher_loss)

    def props(self, only_serializable: bool, **kwargs: bool) -> dict[str, Any]:
        """Collect the recipe's keys; ``update`` is also the name of a hook.

        Args:
            only_serializable: True for the keys that go into YAML alone.
            **kwargs: SparseML's choice of format.

        Returns:
            Value by key.
        """
        return {
            **super().props(only_serializable, **kwargs),
            "update": self._update_rule,
        }

    def initialize(
        self, module: nn.Module, epoch: float = 0, loggers: Any = None, **kwargs: Any
    ) -> None:
        """Take the source of gradients and resolve the parameters.

        Args:
            module: The model.
            epoch: Epoch to start from; ``inf`` prunes to the final sparsity now.
            loggers: SparseML loggers.
            **kwargs: ``gradient_source`` or ``grad_sampler``, and what the caller
                offers to other modifiers.
        """
        self._engine.connect(kwargs)
        super().initialize(module, epoch, loggers, **kwargs)
        self._engine.log_plan(self._masks.targets)

    def memory_plan(self, ranks: int | None = None) -> MemoryPlan:
        """Plan the Fisher state of an event for the selected parameters.

        Args:
            ranks: Number of processes; None asks torch, and every process has to
                call it.

        Returns:
            The plan; an error if the budget is too small.
        """
        return self._engine.plan(self._masks.targets, ranks)

    def _config(self) -> SecondOrderConfig:
        auto = self._damp == AUTO
        return SecondOrderConfig(
            num_grads=self._num_grads,
            fisher_block_size=self._fisher_block_size,
            damp=None if auto else self._damp,
            damp_fraction=self._damp_fraction,
            damp_grid=DAMP_GRID if auto else (),
            grad_granularity=self._grad_granularity,
            selection=self._selection,
            update=self._update_rule,
            num_recomputations=self._num_recomputations,
            fisher_dtype=self._fisher_dtype,
            memory_budget=self._budget_bytes,
            first_order=self._first_order,
            min_density=self._min_density,
            options=tuple((self._grad_sampler_kwargs or {}).items()),
            pattern=self._pattern,
        )

    def prune_step(self, sparsities: Sequence[float]) -> StepResult:
        """Collect gradients, prune, and update what remains; writes the parameters.

        Args:
            sparsities: Target of each parameter, in [0, 1].

        Returns:
            The new masks and the figures of the event.
        """
        return self._engine.prune(
            self._model,
            self._masks,
            sparsities,
            global_sparsity=self._global_sparsity,
            pattern=self._pattern,
        )


def _as_options(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise ValueError(
            f"grad_sampler_kwargs={value} is not a mapping; expected options of the "
            "loader; write batch_size: 32 below it"
        )
    if value is not None and "batch_size" in value:
        as_count("grad_sampler_kwargs", value["batch_size"])
    return value
