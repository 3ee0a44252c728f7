"""Every precision through a recipe with pruning, distillation and quantization."""

import math

import pytest
import torch

from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.training import loop
from tests.training.toy import OBERT, all_equal, each_step, masks_of, records, run

COMPOUND = (
    OBERT
    + """
  - !LogitDistillationModifier
      hardness: 0.6
      temperature: 2.0
      teacher: self
  - !QATModifier
      start_epoch: 2.25
      disable_observer_epoch: 2.5
"""
)
WEIGHTS = 4 * 8 * 12
PRUNED = round(0.8 * WEIGHTS)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compound_recipe_ends_at_the_exact_sparsity(tmp_path, precision) -> None:
    options = {"dtype": torch.float32, "mixed_precision": precision}
    model, result = run(tmp_path, COMPOUND, **options)
    assert result.steps == 24 and len(result.events) == 4
    assert int((~masks_of(model)).sum()) == PRUNED
    assert result.sparsity == PRUNED / WEIGHTS
    assert all(p.dtype is torch.float32 for p in model.parameters())
    assert quantizers_of(model)
    losses = [record["loss"] for record in records(tmp_path, "step")]
    assert len(losses) == 24 and all(map(math.isfinite, losses))


def test_tf32_on_a_cpu_is_an_error_before_anything_is_done(tmp_path) -> None:
    with pytest.raises(ValueError, match="tf32=True runs on a CPU here; expected an"):
        run(tmp_path, OBERT, tf32=True)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_tf32_lasts_as_long_as_the_run(tmp_path, monkeypatch) -> None:
    """On a CPU the switch is set and does nothing; no GPU has run this."""
    seen = []

    def look(stepper, step):
        seen.append(torch.get_float32_matmul_precision())
        return step()

    monkeypatch.setattr(loop, "check_tf32", lambda device: None)
    with each_step(look):
        run(tmp_path, OBERT, tf32=True)
    assert set(seen) == {"high"} and torch.get_float32_matmul_precision() == "highest"
    with each_step(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        run(tmp_path / "breaks", OBERT, tf32=True)
    assert torch.get_float32_matmul_precision() == "highest"


def scaled(monkeypatch, growth_interval: int) -> None:
    """Run fp16 with torch's own scaler on a CPU, which accelerate does not offer."""
    original = loop.make_accelerator

    def make(config):
        accelerator = original(config)
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler(
            "cpu", init_scale=2.0**24, growth_interval=growth_interval
        )
        return accelerator

    monkeypatch.setattr(loop, "make_accelerator", make)


@pytest.mark.parametrize("growth_interval", [1, 4])
def test_fp16_with_a_scaler_prunes_at_and_after_overflows(
    tmp_path, monkeypatch, growth_interval
) -> None:
    """The scale grows until it overflows, over and over, also where events are."""
    scaled(monkeypatch, growth_interval)
    calls = []

    def watch(stepper, step):
        before, events = stepper.steps, len(stepper._manager.events)
        weights = [p.clone() for p in stepper._model.parameters()]
        advanced = step()
        event = len(stepper._manager.events) > events
        assert stepper.steps == before + advanced
        if not advanced and not event:
            assert all_equal(weights, stepper._model.parameters())
        calls.append((before, advanced, event))
        return advanced

    with each_step(watch):
        model, result = run(tmp_path, COMPOUND, dtype=torch.float32, num_train_epochs=3)
    assert result.steps == 24 and [c[0] for c in calls if c[1]] == list(range(24))
    skipped = [step for step, advanced, _ in calls if not advanced]
    assert len(skipped) > 5
    # Each event is at its step, once, be the step skipped and made again or not.
    assert [step for step, _, event in calls if event] == [4, 8, 12, 16]
    if growth_interval == 1:
        assert {4, 8, 12, 16} & set(skipped)
    assert int((~masks_of(model)).sum()) == PRUNED
    assert result.sparsity == PRUNED / WEIGHTS
    assert all(p.isfinite().all() for p in model.parameters())
