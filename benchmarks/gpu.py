"""One part of ``gpu.sh``: checks and figures of a GPU, written as they come.

    python benchmarks/gpu.py PART --device cuda --out FILE

On ``--device cpu`` the same is done on models of a toy's size, so that the script is
tried where there is no GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).parents[1]
SHAPES = {
    "cuda": {},  # BERT-base
    "cpu": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 300,
        "max_position_embeddings": 64,
    },
}
# The goals of an event on BERT-base's shape, and the gradients that it is timed with.
GOAL_SECONDS, GOAL_BYTES = 1.0, 9e9
NUM_GRADS = {"cuda": 1024, "cpu": 16}
WIDTH, RECURSION_GRADS, SPARSITY = 50, 8, 0.8
RECIPE = """
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !GMPStarPruningModifier
      params: __ALL_ENCODER__
      init_sparsity: 0.0
      final_sparsity: 0.5
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.25
"""


class Record:
    """A JSON file that holds what is known so far."""

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        self.values: dict[str, Any] = {"device": device, "finished": False}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.add()

    def add(self, **values: Any) -> None:
        """Add figures and write the file."""
        self.values |= values
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self._path)


def on_gpu(device: str) -> bool:
    return device != "cpu"


def wait(device: str) -> float:
    """Return the time when all work that was handed to the device is done."""
    if on_gpu(device):
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(device: str, work: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Time work, after it was done once."""
    work()
    found = []
    for _ in range(repeats):
        started = wait(device)
        work()
        found.append(wait(device) - started)
    return found


def make_model(device: str, head: str = "SequenceClassification", **changes: Any):
    """Make a random BERT."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPES[device] | changes)
    return getattr(transformers, f"BertFor{head}")(config).to(device)


def make_data(model: nn.Module, count: int, tokens: int = 64) -> Any:
    """Make sentences of random tokens, and a task whose labels can be learned."""
    from obert_modifiers.training.batches import TaskData

    generator = torch.Generator().manual_seed(0)
    vocab = model.config.vocab_size
    rows = torch.randint(5, vocab, (count, tokens), generator=generator)
    samples = [
        {"input_ids": row.tolist(), "labels": int(row[1] > vocab // 2)} for row in rows
    ]

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.tensor([item["input_ids"] for item in items])
        labels = torch.tensor([item["labels"] for item in items])
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def losses(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(outputs.logits.float(), batch["labels"], reduction="none")

    def accuracy(logits: Any, labels: Any) -> dict[str, float]:
        return {"accuracy": float((logits.argmax(-1) == labels).mean())}

    return TaskData(samples, samples[:32], collate, losses, accuracy)


def machine(device: str, record: Record) -> None:
    """Say what there is, and how fast it copies and multiplies."""
    import transformers

    record.add(
        python=sys.version.split()[0],
        torch=torch.__version__,
        transformers=transformers.__version__,
        name=torch.cuda.get_device_name() if on_gpu(device) else "cpu",
        memory=torch.cuda.get_device_properties(0).total_memory
        if on_gpu(device)
        else None,
    )
    size = 8192 if on_gpu(device) else 256
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        left = torch.randn(size, size, device=device).to(dtype)
        taken = min(seconds(device, lambda left=left: left @ left))
        record.add(**{f"product_{dtype}_flops": 2 * size**3 / taken})
    numbers = torch.zeros(2**30 // 4 if on_gpu(device) else 2**20, device=device)
    other = torch.empty_like(numbers)
    taken = min(seconds(device, lambda: other.copy_(numbers)))
    record.add(copy_bytes_per_second=2 * numbers.numel() * 4 / taken)


def kernels(device: str, record: Record) -> None:
    """Run the kernels' tests, with Triton on the device."""
    environment = dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    words = ["-q", "-p", "no:cacheprovider", "tests/kernels"]
    if not on_gpu(device):
        words[-1] = "tests/kernels/test_backend.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    record.add(last_lines=done.stdout.strip().splitlines()[-12:], code=done.returncode)
    if done.returncode:
        raise RuntimeError(done.stdout[-3000:])


def event(device: str, record: Record) -> None:
    """Time a pruning event on BERT-base's shape, and the recursion beside it."""
    from _baseline import rank_one_step_

    from obert_modifiers.core.distributed.memory import peak_memory
    from obert_modifiers.core.options import SecondOrderConfig
    from obert_modifiers.core.pruning.event import PruningEvent, plan_targets
    from obert_modifiers.core.pruning.fisher_state import FisherState
    from obert_modifiers.core.pruning.selection import make_pools
    from obert_modifiers.modifiers._targets import encoder_weights, find_targets
    from obert_modifiers.training.batches import gradient_source, inputs_of

    model = make_model(device).eval()
    data = make_data(model, max(64, NUM_GRADS[device]))
    targets = find_targets(model, encoder_weights(model))
    weights = sum(target.parameter.numel() for target in targets)
    record.add(weights=weights, num_grads=NUM_GRADS[device], block=WIDTH)

    def once(num_grads: int) -> dict[str, float]:
        masks = [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]
        config = SecondOrderConfig(num_grads=num_grads, fisher_block_size=WIDTH)
        plan = plan_targets(targets, config)
        source = gradient_source(data, model.forward, torch.device(device), seed=0)
        state = FisherState(model, targets, masks, plan, config, source)
        found = PruningEvent(state)
        if on_gpu(device):
            torch.cuda.reset_peak_memory_stats()
        started = wait(device)
        for _ in found.state.sweep():
            pass
        swept = wait(device)
        pools = make_pools([m.numel() for m in masks], [SPARSITY] * len(masks), True)
        outcome, _ = found.best_outcome(pools)
        ended = wait(device)
        kept = sum(int(mask.sum()) for mask in outcome.masks)
        return {
            "fisher_s": swept - started,
            "selection_and_update_s": ended - swept,
            "seconds": ended - started,
            "peak_bytes": peak_memory(device),
            "sparsity": 1 - kept / weights,
        }

    record.add(warm_up=once(8))
    found = once(NUM_GRADS[device])
    record.add(**found)
    record.add(
        goal_seconds=GOAL_SECONDS,
        goal_bytes=GOAL_BYTES,
        met=on_gpu(device)
        and found["seconds"] <= GOAL_SECONDS
        and found["peak_bytes"] <= GOAL_BYTES,
    )
    batches = [data.collate(data.train[8 * i : 8 * i + 8]) for i in range(4)]

    def loss(nth: int) -> Tensor:
        batch = {k: v.to(device) for k, v in batches[nth % 4].items()}
        return cross_entropy(model(**inputs_of(batch)).logits, batch["labels"])

    def recursion(count: int) -> float:
        started = wait(device)
        losses = [lambda nth=nth: loss(nth) for nth in range(count)]
        saved = [target.parameter.detach().clone() for target in targets]
        rank_one_step_(targets, losses, WIDTH, 1e-3, SPARSITY)
        ended = wait(device)
        with torch.no_grad():
            for target, old in zip(targets, saved, strict=True):
                target.parameter.copy_(old)
        return ended - started

    recursion(2)
    few, more = recursion(RECURSION_GRADS), recursion(2 * RECURSION_GRADS)
    each = (more - few) / RECURSION_GRADS
    whole = few + each * (NUM_GRADS[device] - RECURSION_GRADS)
    record.add(
        recursion_s_per_gradient=each,
        recursion_s=whole,
        ratio=whole / found["seconds"],
    )


def masks(device: str, record: Record) -> None:
    """Compare a training step with masks with one without."""
    from obert_modifiers import RecipeManager
    from obert_modifiers.training import RecipeStepper

    found: dict[str, list[float]] = {}
    for variant in ("dense", "masked"):
        model = make_model(device).train()
        data = make_data(model, 64)
        batch = {k: v.to(device) for k, v in data.collate(data.train[:32]).items()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        advance = optimizer.step
        if variant == "masked":
            recipe = RECIPE.replace("start_epoch: 0.5", "start_epoch: 0.0")
            manager = RecipeManager.from_recipe(recipe)
            manager.initialize(model)
            stepper = RecipeStepper(manager, model, optimizer, 20)
            advance = stepper.step
        times = []
        for _ in range(60 if on_gpu(device) else 45):
            started = wait(device)
            model(**batch).loss.backward()
            advance()
            optimizer.zero_grad()
            times.append(wait(device) - started)
        found[variant] = sorted(times[32:])
        record.add(**{f"{variant}_s": found[variant]})
        if variant == "masked":
            record.add(sparsity=manager.sparsity())
    middle = [times[len(times) // 2] for times in found.values()]
    record.add(more_than_dense=middle[1] / middle[0] - 1)


def run_training(device: str, folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    """Train for two epochs with the recipe."""
    from obert_modifiers import RecipeManager
    from obert_modifiers.training import TrainConfig, train

    model = make_model(device, hidden_dropout_prob=0.1)
    data = make_data(model, 128)
    config = TrainConfig(
        folder,
        cpu=not on_gpu(device),
        per_device_train_batch_size=16,
        learning_rate=1e-4,
        report_to="none",
        **options,
    )
    torch.manual_seed(0)
    result = train(model, data, config, RecipeManager.from_recipe(RECIPE))
    return model, result


def precision(device: str, record: Record) -> None:
    """Train shortly in each precision."""
    ways = {"float32": {}, "bf16": {"mixed_precision": "bf16"}}
    if on_gpu(device):
        ways |= {"fp16": {"mixed_precision": "fp16"}, "tf32": {"tf32": True}}
    for name, options in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            started = wait(device)
            _, result = run_training(device, Path(folder), **options)
        record.add(**{
            name: {
                "seconds": wait(device) - started,
                "loss": result.metrics["loss"],
                "sparsity": result.sparsity,
                "steps": result.steps,
            }
        })
        if abs(result.sparsity - 0.5) > 1e-3:
            raise RuntimeError(f"{name} ends at sparsity {result.sparsity}")


def resume(device: str, record: Record) -> None:
    """Resume a run from its middle, and compare its weights with a whole run's."""
    steps = {"save_strategy": "steps", "save_steps": 4}
    with tempfile.TemporaryDirectory() as folder:
        whole, _ = run_training(device, Path(folder) / "whole", **steps)
        half = next((Path(folder) / "whole").glob("checkpoint-4"), None)
        if half is None:
            raise RuntimeError("the run left no checkpoint-4")
        again, _ = run_training(
            device, Path(folder) / "again", resume_from_checkpoint=half, **steps
        )
    away = max(
        float((a - b).detach().abs().max())
        for a, b in zip(whole.parameters(), again.parameters(), strict=True)
    )
    pairs = zip(whole.parameters(), again.parameters(), strict=True)
    same_zeros = all(torch.equal(a == 0, b == 0) for a, b in pairs)
    record.add(farthest=away, same_bits=away == 0.0, same_zeros=same_zeros)


def nccl(device: str, record: Record) -> None:
    """Run an event's collectives in a group of one process."""
    from obert_modifiers.core.distributed.parallel import all_reduce_, world

    backend = "nccl" if on_gpu(device) else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            backend, init_method=f"file://{folder}/meet", rank=0, world_size=1
        )
        try:
            numbers = torch.arange(1000.0, device=device)
            distributed.all_reduce(numbers)
            all_reduce_(numbers)
            same = torch.equal(numbers.cpu(), torch.arange(1000.0))
            record.add(backend=backend, world=list(world()), same=same)
            event_record = Record(
                Path(folder) / "event.json", device
            )  # an event under the group
            if on_gpu(device):
                NUM_GRADS[device] = 64
            event(device, event_record)
            record.add(event=event_record.values)
        finally:
            distributed.destroy_process_group()


def two_four(device: str, record: Record) -> None:
    """Time 2:4 weights on the sparse tensor cores, layer by layer and end to end."""
    from transformers import BertForSequenceClassification

    from obert_modifiers.deploy.formats.torch24 import (
        export_torch24,
        load_torch24,
        sparsify_,
    )

    model = make_model(device).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder" in name and weight.ndim == 2:
                fours = weight.view(-1, 4)
                lowest = fours.abs().argsort(1)[:, :2]
                fours.scatter_(1, lowest, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "24"
        model.cpu().save_pretrained(run)
        export_torch24(run, out, dtype="float16")
        record.add(tensors=len(load_torch24(out)))
        if not on_gpu(device):
            return
        dense = BertForSequenceClassification.from_pretrained(run).half().cuda().eval()
        sparse = BertForSequenceClassification.from_pretrained(run).half().cuda().eval()
        record.add(sparse_layers=len(sparsify_(sparse, out)))
    ids = torch.randint(5, 20000, (32, 128), device=device)
    for name in ("attention.self.query", "intermediate.dense", "output.dense"):
        width = 3072 if name == "output.dense" else 768
        x = torch.randn(4096, width, device=device, dtype=torch.float16)
        layers = [m.bert.encoder.layer[0].get_submodule(name) for m in (dense, sparse)]
        with torch.inference_mode():
            times = [min(seconds(device, lambda m=m, x=x: m(x), 20)) for m in layers]
        record.add(**{name: {"dense_s": times[0], "sparse_s": times[1]}})
    with torch.inference_mode():
        first, second = dense(ids).logits, sparse(ids).logits
        record.add(farthest=float((first - second).abs().max()))
        times = [min(seconds(device, lambda m=m: m(ids), 10)) for m in (dense, sparse)]
    record.add(dense_s=times[0], sparse_s=times[1], ratio=times[0] / times[1])


PARTS = {
    one.__name__: one
    for one in (machine, event, kernels, masks, precision, resume, nccl, two_four)
}


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args()
    record = Record(flags.out, flags.device)
    try:
        PARTS[flags.part](flags.device, record)
    except Exception as error:
        record.add(error=f"{type(error).__name__}: {error}")
        raise
    record.add(finished=True)


if __name__ == "__main__":
    main()
