"""What masks cost in a training step: none, ours, SparseML's, in turns.

The embedded encoder with a head, AdamW, batches of 32 sentences of random tokens, the
encoder's linear weights at 80 %, no pruning event inside the measured steps. Each round
makes one step of each variant, so that a slower minute of the machine meets all of
them; the cost is the median over the rounds of the difference to the dense step.

    python benchmarks/bench_train_step.py --json FILE [--lengths 32 128] [--quick]
"""

import statistics
import time
from collections.abc import Callable

import _common as common
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from obert_modifiers.embedded import encoder_path
from obert_modifiers.host.bases import ScheduledModifierManager, silent_loggers
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.training import RecipeStepper

BATCH = 32
STEPS_PER_EPOCH = 1000
KEYS = """\
      init_sparsity: 0.8
      final_sparsity: 0.8
      start_epoch: 0.0
      end_epoch: 0.002
      update_frequency: 0.001
      leave_enabled: True
"""
RECIPES = {
    "ours": "modifiers:\n  - !GMPStarPruningModifier\n      params: {params}\n" + KEYS,
    "sparseml": "modifiers:\n  - !GMPruningModifier\n      params: {params}\n"
    "      mask_type: unstructured\n" + KEYS,
}
GOAL = 0.02  # of a dense step


def make_step(variant: str, length: int) -> tuple[Callable[[], None], nn.Module]:
    """Make a model and the function that trains it for one step.

    Args:
        variant: ``dense``, ``ours`` or ``sparseml``.
        length: Tokens of a sentence.

    Returns:
        The function and the model.
    """
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(encoder_path()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.randint(1000, 30000, (BATCH, length))
    batch = {"input_ids": tokens, "labels": tokens.sum(dim=1) % 2}
    advance = optimizer.step
    if variant != "dense":
        recipe = RECIPES[variant].format(params=encoder_weights(model))
        if variant == "ours":
            manager = RecipeManager.from_recipe(recipe)
            manager.initialize(model)
            advance = RecipeStepper(manager, model, optimizer, STEPS_PER_EPOCH).step
        else:
            host = ScheduledModifierManager.from_yaml(recipe)
            advance = host.modify(
                model, optimizer, STEPS_PER_EPOCH, loggers=silent_loggers()
            ).step

    def step() -> None:
        model(**batch).loss.backward()
        advance()
        optimizer.zero_grad()

    return step, model


def sparsity(model: nn.Module) -> float:
    """Count the zeros in the encoder's linear weights.

    Args:
        model: The model.

    Returns:
        Their share.
    """
    weights = [model.get_parameter(name) for name in encoder_weights(model)]
    return 1.0 - sum(int(w.count_nonzero()) for w in weights) / sum(
        w.numel() for w in weights
    )


def measure(length: int, rounds: int) -> list[dict]:
    """Time the variants in turns.

    Args:
        length: Tokens of a sentence.
        rounds: Measured steps of each.

    Returns:
        A row for each variant: milliseconds and cost of a step.
    """
    made = {name: make_step(name, length) for name in ("dense", *RECIPES)}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for nth in range(rounds + 5):  # pruning and warm-up are in the first five
        for name, (step, _) in made.items():
            started = time.perf_counter()
            step()
            if nth >= 5:
                seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, (_, model) in made.items():
        extra = [a - b for a, b in zip(seconds[name], seconds["dense"], strict=True)]
        middle = statistics.median(seconds["dense"])
        rows.append({
            "variant": name,
            "length": length,
            "rounds": rounds,
            "median_ms": 1000 * statistics.median(seconds[name]),
            "sd_ms": 1000 * statistics.stdev(seconds[name]),
            "cost": statistics.median(extra) / middle,
            "sparsity": sparsity(model),
        })
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    lengths = arguments.lengths[:1] if arguments.quick else arguments.lengths
    rows: list[dict] = []
    for length in lengths:
        rows += measure(length, 15 if arguments.quick else arguments.rounds)
    cost = {(row["variant"], row["length"]): row["cost"] for row in rows}
    ratios = {
        str(length): cost["sparseml", length] / cost["ours", length]
        for length in lengths
    }
    result = {"benchmark": "train_step", "goal": GOAL, "ratio": ratios, "rows": rows}
    common.write(arguments.json, result | common.environment())
    print(
        "| tokens | variant | ms | cost of the masks | sparsity |\n" + "|---" * 5 + "|"
    )
    for row in rows:
        print(
            f"| {row['length']} | {row['variant']} | {row['median_ms']:.1f} ± "
            f"{row['sd_ms']:.1f} | {row['cost']:+.2%} | {row['sparsity']:.2%} |"
        )


if __name__ == "__main__":
    main()
