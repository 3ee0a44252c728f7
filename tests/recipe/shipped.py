"""What each shipped recipe promises, and a small run of one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from obert_modifiers.core.embedding import Embeds, embed_
from obert_modifiers.core.pruning.sampling import GradientSource
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.resources import recipe_path
from obert_modifiers.training.stepper import RecipeStepper

# Steps of an epoch, at least two of each cycle of the learning rate; else 2.
CYCLES = {"_mlm_obert": 8, "_mlm_gmp": 4, "_mlm_distill": 4, "mobilebert": 1}
SMALL = {"num_grads": 4, "grad_batch_size": 2}
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
}
NARROW = {"embedding_size": 8, "intra_bottleneck_size": 8}


@dataclass(frozen=True)
class Shipped:
    """What a recipe promises; schedule and rates by epoch, by hand from the paper."""

    epochs: float | None  # None where it sets none
    events: int
    sparsity: float  # of the encoder's linear weights in the end
    schedule: dict[float, float]  # target sparsity of some events
    rates: dict[float, float]  # learning rate at some epochs
    slow: bool  # True where another test runs the same setup with other numbers
    quantized: bool  # True where weights and activations end in 8 bits
    layers: tuple[int, int] | None  # of the encoder before and after, if some go
    ends: float | None  # where early stopping ends the small run
    family: str | None  # of recipes whose text below the variables is the same
    variants: list[float]  # final sparsities that the papers report or name


SCHEDULES = {
    "none": {},
    "quick": {0.5: 0.6, 2.0: 0.8},
    "movies": {3.0: 0.5, 5.0: 0.7625, 7.0: 0.8},
    "embedding": {0.0: 0.5, 1.0: 0.7625, 2.0: 0.8},
    "reranker": {0.5: 0.5, 1.5: 0.7352, 3.0: 0.8},
    "ten": {2.0: 0.7, 5.0: 0.875, 8.0: 0.9},  # half way is 7/8 of the rest
    "thirty": {2.0: 0.7, 14.0: 0.875, 26.0: 0.9},
    "blocks": {2.0: 0.7, 14.0: 0.7875, 26.0: 0.8},
    "fewer": {2.0: 0.3, 14.0: 0.825, 26.0: 0.9},
    "fewer-blocks": {2.0: 0.3, 14.0: 0.7375, 26.0: 0.8},
    "large-blocks": {2.0: 0.7, 14.0: 0.95 - 0.25 * (7 / 13) ** 3, 28.0: 0.95},
    "mobile": {2.0: 0.25, 14.0: 0.5 - 0.25 * (7 / 13) ** 3, 28.0: 0.5},
    "half": {0.0: 0.5},
    "upstream": {0.0: 0.7, 2.75: 0.9},
    "star-30": {2.0: 0.7, 15.0: 0.875, 28.0: 0.9},
    "star-3": {0.0: 0.7, 1.0: 0.875, 2.0: 0.9},
    "at-once": {0.0: 0.7, 4.0: 0.875, 8.0: 0.9},
    "in-four": {0.0: 0.7, 2.0: 0.875, 4.0: 0.9},
    "late": {5.0: 0.7, 7.0: 0.875, 9.0: 0.9},
    "late-6": {5.0: 0.5, 7.0: 0.85, 9.0: 0.9},
    "late-3": {5.0: 0.3, 7.0: 0.825, 9.0: 0.9},
}
COMPOUND = {0.0: 1e-4, 1.0: 5.05e-5, 2.0: 1e-4, 27.0: 7.5e-5, 28.0: 1e-4, 29.0: 5.05e-5}
UPSTREAM = {0.0: 5e-4, 0.5: 5e-4, 2.5: 5e-4}
RATES = {
    "none": {},
    "quick": {0.0: 1e-4},
    "quick-int8": {0.0: 5e-5},
    "embedding": {0.0: 1e-3},
    "movies": {0.0: 1e-4, 3.0: 1e-4, 7.0: 1e-4, 10.0: 5e-5},
    "reranker": {0.0: 1e-4, 3.0: 5.05e-5},
    "squad-10": {0.0: 8e-5, 8.0: 8e-5, 4.0: 5.5e-5, 9.0: 5.5e-5},
    "glue-10": {0.0: 8e-5, 8.0: 8e-5, 4.0: 5e-5, 9.0: 5e-5},
    "squad-30": {0.0: 8e-5, 1.0: 4.4e-5, 2.0: 8e-5, 8.0: 4.4e-5, 26.0: 8e-5},
    "glue-30": {0.0: 5e-5, 2.0: 5e-5, 28.0: 2.75e-5},
    "large-30": {0.0: 8e-5, 28.0: 4.4e-5},
    "qat": {0.0: 8e-5, 5.0: 4e-5},
    "compound": COMPOUND | {30.0: 2e-5, 31.0: 1e-5},
    "mobile": COMPOUND | {30.0: 3e-5, 31.0: 1.5e-5},
    "one": {0.0: 8e-5, 0.5: 5.5e-5},
    "squad-2": {0.0: 3e-5, 1.0: 1.5e-5},
    "glue-3": {0.0: 2e-5, 1.5: 1e-5},
    "roberta-3": {0.0: 1e-5, 1.5: 5e-6},
    "teacher": {0.0: 1e-4, 5.0: 5e-5},
    "upstream": UPSTREAM,
    "upstream-3": UPSTREAM | {0.25: 5e-4, 2.75: 5e-4},
    "upstream-5": UPSTREAM | {4.5: 5e-4},
    "upstream-10": UPSTREAM | {5.0: 5e-4, 9.5: 5e-4},
    "transfer-8": {0.0: 1.5e-4, 4.0: 7.575e-5},
    "transfer-10": {0.0: 1.5e-4, 5.0: 7.5e-5},
    "transfer-20": {0.0: 1.5e-4, 5.0: 7.5e-5, 10.0: 5e-5, 15.0: 2.5e-5},
    "star": {0.0: 1e-4, 2.0: 1e-4, 7.0: 5e-5, 8.0: 1e-4},
    "roberta": {0.0: 8e-5, 8.0: 8e-5},
}
# Recipe; epochs, events and sparsity; schedule and rates; what else there is, `=` the
# family and `to:` the variants in percent.
_TABLE = """
quickstart 3 4 0.8 quick quick
quickstart_gmp 3 4 0.8 quick quick
quickstart_int8 1 0 0.0 none quick-int8 int8
minilm-l6_movies_compound-3layer-int8_4block80 13 5 0.8 movies movies slow int8 6>3
minilm-l6_embedding_distil-int8_4block80 4 3 0.8 embedding embedding int8
minilm-l6_embedding_distil-3layer-int8_dense0 7 0 0.0 none embedding int8 6>3
minilm-l6_reranker_obert-6ep_4block80 6 6 0.8 reranker reranker slow
# oBERT, downstream
bert-base_squad_obert-10ep_unstructured90 10 13 0.9 ten squad-10 =10 to:80,90,97
bert-base_glue_obert-10ep_unstructured90 10 13 0.9 ten glue-10 slow =10 to:80,90,97
bert-base_squad_obert-30ep_unstructured90 30 7 0.9 thirty squad-30 slow =30 to:80,90,97
bert-base_glue_obert-30ep_unstructured90 30 7 0.9 thirty glue-30 slow =30 to:80,90,97
bert-base_squad_obert-30ep_4block80 30 7 0.8 blocks squad-30 =30 to:80,90
bert-6layer_squad_obert-30ep_unstructured90 30 7 0.9 fewer squad-30 slow =30 to:80,90
bert-3layer_squad_obert-30ep_unstructured90 30 7 0.9 fewer squad-30 slow =30 to:80,90
bert-6layer_squad_obert-30ep_4block80 30 7 0.8 fewer-blocks squad-30 slow =30 to:80,90
bert-3layer_squad_obert-30ep_4block80 30 7 0.8 fewer-blocks squad-30 slow =30 to:80,90
bert-large_squad_obert-30ep_unstructured90 30 7 0.9 thirty large-30 slow =30 to:90,95
bert-base_squad_distill-30ep_dense0 30 0 0.0 none squad-30
bert-base_squad_teacher-2ep_dense0 2 0 0.0 none squad-2 =teach
bert-base_glue_teacher-3ep_dense0 3 0 0.0 none glue-3 slow =teach
bert-base_squad_qat-10ep_4block80 10 0 0.8 none qat int8
bert-large_squad_compound-32ep_4block95 32 14 0.95 large-blocks compound slow int8 to:95
mobilebert-14layer_squad_compound-32ep_4block50 32 14 0.5 mobile mobile slow int8 24>14
bert-base_squad_obert-oneshot_2of4-50 - 1 0.5 half none
bert-base_squad_obert-1ep_2of4-50 1 1 0.5 half one
# oBERT, upstream and transfer
bert-base_mlm_teacher-10ep_dense0 10 0 0.0 none teacher =teach
bert-6layer_mlm_drop-10ep_dense0 10 0 0.0 none teacher 12>6 =drop
bert-3layer_mlm_drop-10ep_dense0 10 0 0.0 none teacher 12>3 =drop
bert-base_mlm_obert-3ep_unstructured90 3 12 0.9 upstream upstream-3 to:90,97
bert-base_downstream_transfer-8ep_unstructured90 8 0 0.9 none transfer-8
bert-base_downstream_transfer-nokd-8ep_unstructured90 8 0 0.9 none transfer-8 ends:5
# GMP★
bert-base_downstream_gmp-star-10ep_unstructured90 10 61 0.9 ten star =st to:90,97
bert-large_squad_gmp-star-30ep_unstructured90 30 261 0.9 star-30 star slow =st to:90,97
bert-base_mlm_gmp-star-3ep_unstructured90 3 201 0.9 star-3 upstream to:90,97
bert-base_squad_obert-star-30ep_unstructured90 30 261 0.9 star-30 star slow to:90,97
# oBERTa
roberta-base_downstream_teacher-3ep_dense0 3 0 0.0 none roberta-3 slow =teach
roberta-base_squad_obert-10ep_unstructured90 10 17 0.9 at-once roberta
roberta-base_squad_gmp-10ep_unstructured90 10 17 0.9 at-once roberta
roberta-base_mlm_distill-5ep_dense0 5 0 0.0 none upstream-5
roberta-6layer_mlm_distill-5ep_dense0 5 0 0.0 none upstream-5 slow 12>6 =dense
roberta-3layer_mlm_distill-5ep_dense0 5 0 0.0 none upstream-5 slow 12>3 =dense
roberta-base_mlm_gmp-5ep_unstructured90 5 401 0.9 in-four upstream-5 to:90,95
roberta-base_mlm_obert-5ep_unstructured90 5 401 0.9 in-four upstream-5 slow to:90,95
roberta-base_mlm_gmp-10ep_unstructured90 10 401 0.9 late upstream-10 slow to:90,95
roberta-6layer_mlm_gmp-10ep_unstructured90 10 401 0.9 late-6 upstream-10 slow 12>6 =few
roberta-3layer_mlm_gmp-10ep_unstructured90 10 401 0.9 late-3 upstream-10 12>3 =few
roberta-base_downstream_transfer-10ep_unstructured90 10 0 0.9 none transfer-10 slow
roberta-base_downstream_transfer-qat-20ep_unstructured90 20 0 0.9 none transfer-20 int8
"""


def _shipped(line: str) -> tuple[str, Shipped]:
    name, epochs, events, sparsity, schedule, rates, *more = line.split()
    given = dict(re.fullmatch(r"(to:|ends:|=|)(.*)", word).groups() for word in more)
    layers = next((tuple(map(int, w.split(">"))) for w in more if ">" in w), None)
    promise = Shipped(
        epochs=None if epochs == "-" else float(epochs),
        events=int(events),
        sparsity=float(sparsity),
        schedule=SCHEDULES[schedule],
        rates=RATES[rates],
        slow="slow" in more,
        quantized="int8" in more,
        layers=layers,
        ends=float(given["ends:"]) if "ends:" in given else None,
        family=given.get("="),
        variants=[int(n) / 100 for n in given.get("to:", "").split(",") if n],
    )
    return name, promise


_LINES = [line for line in _TABLE.strip().splitlines() if not line.startswith("#")]
SHIPPED = dict(map(_shipped, _LINES))


def tiny_model(name: str) -> nn.Module:
    """Make a random model of a recipe's family, with the layers it starts from."""
    layers = SHIPPED[name].layers
    shape = {**SHAPE, "num_hidden_layers": layers[0] if layers else 1}
    torch.manual_seed(3)
    if name.startswith("roberta"):
        return RobertaForSequenceClassification(RobertaConfig(**shape, pad_token_id=1))
    if name.startswith("mobilebert"):
        config = MobileBertConfig(**shape, **NARROW)
        return MobileBertForSequenceClassification(config)
    if "_embedding_" in name:
        return embed_(BertModel(BertConfig(**shape)), Embeds())
    return BertForSequenceClassification(BertConfig(**shape))


def batch(seed: int, size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 40, (size, 6), generator=generator)
    return {"input_ids": tokens, "labels": tokens.sum(dim=1) % 2}


def sample_loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    outputs = model(input_ids=inputs["input_ids"])
    return output_loss(outputs, inputs)


def output_loss(outputs: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the loss of each sample, of embeddings that of any two features."""
    embedding = outputs.get("sentence_embedding")
    logits = outputs["logits"] if embedding is None else embedding[:, :2]
    return nn.functional.cross_entropy(logits, inputs["labels"], reduction="none")


def zeros(model: nn.Module) -> tuple[int, int]:
    """Count zeros among the encoder's linear weights, and those weights."""
    weights = dict(model.named_parameters())
    found = [weights[name] for name in encoder_weights(model)]
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)


def prune_before(model: nn.Module, sparsity: float, group: int) -> None:
    """Zero a share of each weight's groups, as a model that was pruned has."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in encoder_weights(model):
            rows = weights[name].view(-1, group)
            order = rows.abs().sum(dim=1).argsort()
            rows[order[: round(sparsity * len(rows))]] = 0.0


def small_run(
    name: str, watch: Callable[[float, nn.Module], None] | None = None
) -> tuple[nn.Module, RecipeManager, float]:
    """Train a tiny model with the recipe, a few steps in an epoch.

    An evaluation after each epoch finds an accuracy that rises for three epochs.

    Returns:
        The model, the manager, and the epoch at which the run ended.
    """
    text = recipe_path(name).read_text(encoding="utf-8")
    known = yaml.safe_load(re.sub(r"!\w+", "", text))
    args = {key: value for key, value in SMALL.items() if key in known}
    manager = RecipeManager.from_recipe(recipe_path(name), args)
    model, promise = tiny_model(name), SHIPPED[name]
    if promise.sparsity and not promise.events:
        prune_before(model, promise.sparsity, 4 if "4block" in name else 1)
    steps = next((n for part, n in CYCLES.items() if part in name), 2)
    source = GradientSource(
        lambda request: [batch(1000 * request.draw + i, 2) for i in range(8)],
        sample_loss,
    )
    manager.initialize(model, gradient_source=source, teacher="self")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    stepper = RecipeStepper(manager, model, optimizer, steps)
    for step in range(max(1, round((manager.max_epochs or 0.0) * steps))):
        inputs = batch(step)
        outputs = model(input_ids=inputs["input_ids"])
        loss = output_loss(outputs, inputs).mean()
        place = (model, optimizer, stepper.epoch, steps)
        given = {"student_outputs": outputs, "student_inputs": inputs}
        manager.loss(loss, *place, **given).backward()
        stepper.step()
        optimizer.zero_grad()
        if watch is not None:
            watch(stepper.epoch, model)
        figures = {"accuracy": min(stepper.epoch, 3.0) / 10.0}
        whole = stepper.epoch == int(stepper.epoch)
        if whole and manager.evaluated(model, figures, stepper.epoch):
            break
    manager.finalize(model)
    return model, manager, stepper.epoch
