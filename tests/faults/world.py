"""A small run that can be killed: model, data, recipes, and what is compared."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import TrainConfig, train
from obert_modifiers.training.batches import TaskData
from tests.training import toy
from tests.training.toy import each_step

HEAD = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}
  - !LearningRateFunctionModifier
      {start_epoch: 0.0, end_epoch: 3.0, lr_func: linear, init_lr: 2e-2, final_lr: 1e-3}
"""
SCHEDULE = """
      init_sparsity: 0.3
      final_sparsity: 0.8
      start_epoch: 0.4
      end_epoch: 2.0
      update_frequency: 0.4
"""
SELF = (
    "  - !LogitDistillationModifier {hardness: 0.6, temperature: 2.0, teacher: self}\n"
)
OBERT = f"""{HEAD}
  - !OBERTPruningModifier{SCHEDULE}
      num_grads: 16
      memory_budget: 2GB
      fisher_block_size: 12
      fisher_loss: train
      damp: auto
      grad_sampler_kwargs: {{batch_size: 8}}
{SELF}"""
GMP = f"{HEAD}  - !GMPStarPruningModifier{SCHEDULE}      mask_type: block4\n"
N_M = f"""{HEAD}
  - !NMPruningModifier
      mask_type: "1:4"
      start_epoch: 0.4
      end_epoch: 2.2
      gradual: by_n
      score: obs
      num_grads: 12
      memory_budget: 2GB
      fisher_block_size: 12
"""
QAT = f"""{HEAD}
  - !ConstantPruningModifier {{start_epoch: 0.0, params: ['re:layers.*weight']}}
  - !QATModifier {{start_epoch: 0.6, disable_observer_epoch: 2.0, per_channel: true}}
"""
DROP = f"""{HEAD}
  - !LayerDropModifier {{keep: [0, 2]}}
  - !GMPStarPruningModifier{SCHEDULE}      global_sparsity: true
{SELF}"""
STAGED = """
prune_stage:
  prune_modifiers:
    - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}
    - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: 0.02}
    - !OBERTPruningModifier
        init_sparsity: 0.4
        final_sparsity: 0.7
        start_epoch: 0.4
        end_epoch: 1.6
        update_frequency: 0.4
        num_grads: 12
        memory_budget: 2GB
        fisher_block_size: 12
        mask_type: block:2x2
        update: row
quantize_stage:
  quantize_modifiers:
    - !EpochRangeModifier {start_epoch: 2.0, end_epoch: 3.0}
    - !SetLearningRateModifier {start_epoch: 2.0, learning_rate: 0.005}
    - !QATModifier {start_epoch: 2.2, disable_observer_epoch: 2.8}
"""
HOSTS = """
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 3.0}
  - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: 0.02}
  - !SetLearningRateModifier {start_epoch: 1.4, learning_rate: 0.005}
  - !SetWeightDecayModifier {start_epoch: 0.6, weight_decay: 0.1}
  - !TrainableParamsModifier
      params: ['embedding.weight', 're:layers.1.*']
      start_epoch: 0.8
      end_epoch: 2.2
      trainable: false
  - !MagnitudePruningModifier
      params: ['re:layers.*weight']
      init_sparsity: 0.2
      final_sparsity: 0.7
      start_epoch: 0.4
      end_epoch: 1.8
      update_frequency: 0.4
      leave_enabled: true
"""
RECIPES = {
    "early": HEAD
    + "  - !EarlyStoppingModifier {metric: loss, mode: max, patience: 1}\n",
    "obert": OBERT,
    "average": f"{GMP}  - !WeightAveragingModifier {{start_epoch: 2.0, decay: 0.8}}\n",
    "texts": f"{GMP}{SELF}",
    "gmp": GMP,
    "nm": N_M,
    "qat": QAT,
    "drop": DROP,
    "staged": STAGED,
    "hosts": HOSTS,
    "none": "",
}
CHANGING = ("seconds", "peak_memory_bytes", "memory_plan")  # from run to run


class Model(nn.Module):
    """About two thousand weights, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 12)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(12, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 12)
            )
            for _ in range(3)
        )
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = self.norm(hidden + layer(hidden))
        return {"logits": self.head(hidden.mean(dim=1))}


def make_model(sparse: bool = False) -> Model:
    torch.manual_seed(3)
    model = Model()
    if sparse:
        for layer in model.layers:
            for linear in (layer[0], layer[3]):
                weight = linear.weight.data
                weight[weight.abs() < weight.abs().median()] = 0.0
    return model


def make_task(train_samples: int = 38, validation: int = 10) -> TaskData:
    generator = torch.Generator().manual_seed(5)
    samples = []
    for _ in range(train_samples + validation):
        length = int(torch.randint(3, 9, (1,), generator=generator))
        ids = torch.randint(2, 17, (length,), generator=generator)
        samples.append({"input_ids": ids.tolist(), "labels": int(ids.sum() % 3)})

    def collate(items):
        longest = max(len(item["input_ids"]) for item in items)
        rows = [i["input_ids"] + [0] * (longest - len(i["input_ids"])) for i in items]
        tokens = torch.tensor(rows)
        # Draws from torch's generator, as one that masks words does.
        tokens[torch.rand(tokens.shape) < 0.1] = 1
        labels = torch.tensor([item["labels"] for item in items])
        return {"tokens": tokens, "labels": labels}

    parts = samples[:train_samples], samples[train_samples:]
    return TaskData(*parts, collate, toy.sample_loss, toy.accuracy)


def config_of(folder: Path, **options) -> TrainConfig:
    settings = {
        "num_train_epochs": 3.0,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.2,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 2,
        "cpu": True,
    }
    return TrainConfig(folder, **{**settings, **options})


def digest_of_run(model: nn.Module, optimizer, manager) -> str:
    """Hash weights, optimizer, masks, ranges and which parameters train."""
    digest = hashlib.sha256()

    def add(values: torch.Tensor) -> None:
        digest.update(values.detach().contiguous().reshape(-1).numpy().tobytes())

    for name, values in model.state_dict().items():
        digest.update(name.encode())
        add(values)
    for parameter in model.parameters():
        digest.update(bytes([parameter.requires_grad]))
        for name, value in sorted(optimizer.state.get(parameter, {}).items()):
            digest.update(name.encode())
            add(value)
    for group in optimizer.param_groups:
        digest.update(repr((group["lr"], group["weight_decay"])).encode())
    for modifier in manager.pruning if manager is not None else ():
        digest.update(bytes([modifier.module_masks.enabled]))
        for mask in modifier.module_masks.param_masks:
            add(mask != 0)
    for name, quantizer in quantizers_of(model).items():
        digest.update(f"{name} {quantizer.observing} {quantizer.ready}".encode())
        for value in (quantizer.scale, quantizer.zero_point):
            add(value)
    digest.update(torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()


def without_changing(record: dict) -> dict:
    return {name: value for name, value in record.items() if name not in CHANGING}


def train_once(folder: Path, recipe: str, **options) -> None:
    """Train, and write what the run was after each step, and what it ended with."""
    folder.mkdir(parents=True, exist_ok=True)
    text = RECIPES.get(recipe, recipe)
    model, task = make_model(sparse=recipe in ("qat", "none")), make_task()
    if recipe == "texts":  # without labels, beside the others
        task = replace(task, texts=make_task(20).train, texts_share=0.4)
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(11 + rank)
    manager = RecipeManager.from_recipe(text) if text.strip() else None

    def log(stepper, step):
        advanced = step()
        inner = getattr(stepper._optimizer, "optimizer", stepper._optimizer)
        with (folder / f"steps-{rank}").open("a") as file:
            file.write(f"{stepper.steps} {digest_of_run(model, inner, manager)}\n")
        return advanced

    with each_step(log):
        result = train(model, task, config_of(folder, **options), manager)
    found = {
        "weights": {n: toy.digest([v]) for n, v in model.state_dict().items()},
        "ranges": {n: q.scale.tolist() for n, q in quantizers_of(model).items()},
        "events": [without_changing(event.as_dict()) for event in result.events],
        "steps": result.steps,
        "metrics": result.metrics,
        "sparsity": result.sparsity,
    }
    (folder / f"result-{rank}.json").write_text(json.dumps(found, sort_keys=True))


def result_of(folder: Path, rank: int = 0) -> dict:
    return json.loads((folder / f"result-{rank}.json").read_text())


def records_of(folder: Path) -> list[dict]:
    """Read a run's journal without the figures that change from run to run."""
    return list(map(without_changing, toy.records(folder)))


def compare(folder: Path, whole: Path, ranks: int = 1) -> None:
    """Compare a run that was killed and resumed with one that was not."""
    for rank in range(ranks):
        assert result_of(folder, rank) == result_of(whole, rank)
        steps = digests_of(whole, rank)
        assert digests_of(folder, rank) == steps
        assert all(len(digests) == 1 for digests in steps.values())
    assert records_of(folder) == records_of(whole)


def digests_of(folder: Path, rank: int = 0) -> dict[int, set[str]]:
    """Read the hashes of each step; a step that was made twice has to have one."""
    found: dict[int, set[str]] = {}
    for line in (folder / f"steps-{rank}").read_text().splitlines():
        step, digest = line.split()
        found.setdefault(int(step), set()).add(digest)
    return found
