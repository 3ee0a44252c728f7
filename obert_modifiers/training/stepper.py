"""The step rule of a recipe, and nothing else."""

from typing import Any

from torch import nn

from obert_modifiers.recipe.manager import RecipeManager


class RecipeStepper:
    """The step rule: a recipe advances once for each real optimizer step.

    Pruning happens before the optimizer steps, on gradients that are complete; a step
    that the optimizer skips (an overflow in fp16) does not advance the recipe.
    """

    def __init__(
        self,
        manager: RecipeManager | None,
        model: nn.Module,
        optimizer: Any,
        steps_per_epoch: int,
    ) -> None:
        """Start at step 0.

        Args:
            manager: The recipe, initialized; None trains without one.
            model: The unwrapped model.
            optimizer: An optimizer; ``step_was_skipped`` is read where it exists.
            steps_per_epoch: Optimizer steps of an epoch.
        """
        self.steps = 0
        self.steps_per_epoch = steps_per_epoch
        self._manager = manager
        self._model = model
        self._optimizer = optimizer

    @property
    def epoch(self) -> float:
        """Progress in epochs of optimizer steps."""
        whole, rest = divmod(self.steps, self.steps_per_epoch)
        return whole + rest / self.steps_per_epoch

    def step(self) -> bool:
        """Make one optimizer step with everything the recipe wants around it.

        Returns:
            False if the optimizer skipped the step.
        """
        self.before()
        self._optimizer.step()
        return self.after()

    def pass_over(self) -> bool:
        """Advance without gradients: neither weights nor optimizer state change.

        Returns:
            True, as the recipe advances.
        """
        self.before()
        self._optimizer.zero_grad()
        self._optimizer.step()
        return self.after()

    def before(self) -> None:
        """Let the recipe act; the optimizer's step comes right after it."""
        if self._manager is not None:
            self._manager.update(*self._where())
            self._manager.pre_step(*self._where())

    def after(self) -> bool:
        """Apply masks after the optimizer's step, and advance.

        Returns:
            False if the optimizer skipped the step; the recipe stays where it was.
        """
        if self._manager is not None:
            self._manager.post_step(*self._where())
        if getattr(self._optimizer, "step_was_skipped", False):
            return False
        self.steps += 1
        return True

    def _where(self) -> tuple[nn.Module, Any, float, int]:
        return self._model, self._optimizer, self.epoch, self.steps_per_epoch
