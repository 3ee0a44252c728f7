"""Train a small model by a recipe, and write down every bit of it: a process a host.

    python -m tests.host.driven OUT [STATES]

One file in OUT for each of RUNS. With STATES, where another process has written such
files, only what comes after their middle is trained, from the state there.
"""

import hashlib
import io
import sys
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from torch import Tensor

from obert_modifiers import host
from obert_modifiers.host.bases import SCHEDULE_KEY
from obert_modifiers.modifiers._states import from_tensors
from obert_modifiers.recipe.manager import RecipeManager
from tests.modifiers.table import make_batch, make_model, make_source, sample_loss

STEPS, HALF, WHOLE = 4, 7, 16  # optimizer steps: of an epoch, of each part of a run

EPOCHS = "  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 4.0}\n"
RATE = """\
  - !LearningRateFunctionModifier
      {{lr_func: {}, init_lr: 1e-2, final_lr: 0.001, start_epoch: {}, end_epoch: {}}}
"""
RATES = RATE.format("linear", 0.0, 2.0) + RATE.format("cosine", 2.0, 4.0)
PRUNING = """\
      init_sparsity: 0.3
      final_sparsity: eval(goal)
      start_epoch: 1.0
      end_epoch: 3.0
      update_frequency: 0.5
"""
GMP = f"  - !GMPStarPruningModifier\n{PRUNING}"
OBERT = f"  - !OBERTPruningModifier\n{PRUNING}      num_grads: 24\n"
OBERT += "      fisher_block_size: 20\n"
N_M = """\
  - !NMPruningModifier
      {mask_type: '2:4', start_epoch: 1.0, score: obs, num_grads: 24,
       fisher_block_size: 24}
"""
DISTILLATION = "  - !LogitDistillationModifier {hardness: 0.7, temperature: 3.0}\n"
QAT = "  - !QATModifier {start_epoch: 1.0, disable_observer_epoch: 2.0}\n"
CONSTANT = "  - !ConstantPruningModifier\n      params: ['re:layers.*weight']\n"
OTHERS = """\
  - !SetLearningRateModifier {learning_rate: 0.02, start_epoch: 0.5}
  - !SetWeightDecayModifier {weight_decay: 0.3, start_epoch: 1.5}
  - !TrainableParamsModifier
      params: ["re:embedding.*"]
      trainable: false
      start_epoch: 1.0
      end_epoch: 2.0
"""
SCHEDULER = """\
  - !LearningRateModifier
      lr_class: MultiStepLR
      lr_kwargs: {gamma: 0.5, milestones: [1.0, 2.5]}
      init_lr: 0.01
      start_epoch: 0.0
      end_epoch: 4.0
"""
PRUNE_STAGE = (
    EPOCHS.replace("4.0", "3.0") + RATE.format("cyclic_linear", 0.0, 3.0) + GMP
)
HOLD_STAGE = EPOCHS.replace("0.0", "3.0") + CONSTANT + "      start_epoch: 3.0\n"
STAGED = "goal: 0.75\n"
for stage, body in (("prune", PRUNE_STAGE), ("hold", HOLD_STAGE)):
    STAGED += f"{stage}_stage:\n  {stage}_modifiers:\n{indent(body, '  ')}"


def flat(*parts: str) -> str:
    return "goal: 0.75\nmodifiers:\n" + EPOCHS + "".join(parts)


RUNS = {
    "obert": flat(RATES, OBERT),
    "gmp": flat(RATES, GMP, DISTILLATION),
    "n:m": flat(N_M),
    "qat": flat(RATES, QAT),
    "constant": flat(RATES, CONSTANT, "      start_epoch: 1.0\n", QAT, DISTILLATION),
    "others": flat(OTHERS),
    "scheduler": flat(SCHEDULER),
    "staged": STAGED,
}
MEASURED = ("seconds", "peak_memory_bytes")  # of an event, new each time
NOT_SAVED = ("scheduler",)  # what LearningRateModifier has done is no state


def digest(value: Any) -> Any:
    """Return what stands for a value, tensors by their bytes."""
    if isinstance(value, Tensor):
        data = value.detach().contiguous().reshape(-1).view(torch.uint8)
        name = hashlib.sha256(data.numpy().tobytes()).hexdigest()
        return f"{value.dtype} {tuple(value.shape)} {name[:16]}"
    if isinstance(value, dict):
        if SCHEDULE_KEY in value and isinstance(value[SCHEDULE_KEY], Tensor):
            value = from_tensors(value)
        value = {k: v for k, v in value.items() if k not in MEASURED}
        return {str(k): digest(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [digest(one) for one in value]
    return repr(value)


def drive(name: str, state: Path | None) -> dict[str, Any]:
    """Train, and return what can be compared, and the state at the half."""
    manager, model = RecipeManager.from_recipe(RUNS[name]), make_model()
    with torch.no_grad():
        for parameter in model.layers.parameters():  # zeros for constant masks
            parameter[parameter.abs() < 0.05] = 0.0
    teacher = make_model(1)
    before = torch.load(state, weights_only=False)["half"] if state else None
    manager.initialize(model, gradient_source=make_source(), teacher=teacher)
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, weight_decay=0.1)
    seen: list[Any] = []
    if before is not None:
        manager.load_state_dict(before["manager"])
        model.load_state_dict(before["model"])
        optimizer.load_state_dict(before["optimizer"])
        pairs = zip(model.parameters(), before["trainable"], strict=True)
        for parameter, trainable in pairs:
            parameter.requires_grad_(trainable)
    for step in range(0 if before is None else HALF, WHOLE):
        if step == HALF and name not in NOT_SAVED:
            half = {
                "manager": manager.state_dict(),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "trainable": [p.requires_grad for p in model.parameters()],
            }
            half = torch.load(_written(half), weights_only=False)
        batch, epoch = make_batch(step), step / STEPS
        where = (model, optimizer, epoch, STEPS)
        outputs = model(batch["tokens"])
        loss = sample_loss(model, batch).mean()
        loss = manager.loss(loss, *where, student_outputs=outputs, student_inputs=batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        manager.update(*where)
        manager.pre_step(*where)
        optimizer.step()
        manager.post_step(*where)
        optimizer.zero_grad()
        rates = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
        phases = [[m.started, m.ended] for m in manager.modifiers]
        weights = dict(model.named_parameters())
        seen.append(digest([loss, norm, rates, weights, phases, manager.sparsity()]))
    found = {
        "host": host.name(),
        "text": str(manager.host),
        "names": [m.identifier() for m in manager.modifiers],
        "seen": seen[-(WHOLE - HALF) :],
        "first": seen[: -(WHOLE - HALF)],
    }
    if name not in NOT_SAVED:
        found["end"] = digest(manager.state_dict())
        found["half"] = before or half
        found["half digest"] = digest(found["half"])
    return found


def _written(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def main(out: Path, states: Path | None = None) -> None:
    """Write one file for each run, from the state of the same name in a folder."""
    torch.set_num_threads(1)
    for name in RUNS:
        file = name.replace(":", "_") + ".pt"
        if states is None or name not in NOT_SAVED:
            found = drive(name, states and states / file)
            torch.save(found, out / file)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
