"""Every recipe that ships: it loads, is planned, and a small run keeps its promise."""

import re
from dataclasses import dataclass, field

import pytest
import torch
import yaml
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from obert_modifiers.core.sampling import GradientSource
from obert_modifiers.manager import RecipeManager
from obert_modifiers.modifiers._host import ScheduledModifierManager
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.resources import recipe_names, recipe_path
from obert_modifiers.training.stepper import RecipeStepper
from tests.recipe.samples import same_modifiers

CYCLES = {"_mlm_obert": 8, "_mlm_gmp": 4}  # steps of an epoch, two of each cycle
SMALL = {"num_grads": 4, "grad_batch_size": 2}
NAME = re.compile(
    r"[a-z0-9-]+_[a-z0-9]+_[a-z0-9-]+_(unstructured|4block|2of4-|dense)\d+"
)
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class Shipped:
    """What a recipe promises.

    Attributes:
        epochs: Its epochs; None where it sets none.
        events: Its pruning events.
        sparsity: Of the encoder's linear weights in the end.
        schedule: Epoch and target sparsity of some events, by hand from the paper.
        rates: Epoch and learning rate at some epochs, by hand from the paper.
        slow: True where another test runs the same setup with other numbers.
    """

    epochs: float | None
    events: int
    sparsity: float
    schedule: dict[float, float] = field(default_factory=dict)
    rates: dict[float, float] = field(default_factory=dict)
    slow: bool = False


TEN = {"schedule": {2.0: 0.7, 5.0: 0.875, 8.0: 0.9}}  # half way is 7/8 of the rest
THIRTY = {2.0: 0.7, 14.0: 0.875, 26.0: 0.9}
STAR = {"rates": {0.0: 1e-4, 2.0: 1e-4, 7.0: 5e-5, 8.0: 1e-4}}
UPSTREAM = {0.0: 5e-4, 0.5: 5e-4, 2.5: 5e-4}
SHIPPED = {
    "quickstart": Shipped(3.0, 4, 0.8, {0.5: 0.6, 2.0: 0.8}, {0.0: 1e-4}),
    "quickstart_gmp": Shipped(3.0, 4, 0.8, {0.5: 0.6, 2.0: 0.8}, {0.0: 1e-4}),
    "bert-base_squad_obert-10ep_unstructured90": Shipped(
        10.0, 13, 0.9, **TEN, rates={0.0: 8e-5, 8.0: 8e-5, 4.0: 5.5e-5, 9.0: 5.5e-5}
    ),
    "bert-base_glue_obert-10ep_unstructured90": Shipped(
        10.0,
        13,
        0.9,
        **TEN,
        rates={0.0: 8e-5, 8.0: 8e-5, 4.0: 5e-5, 9.0: 5e-5},
        slow=True,
    ),
    "bert-base_squad_obert-30ep_unstructured90": Shipped(
        30.0,
        7,
        0.9,
        THIRTY,
        {0.0: 8e-5, 1.0: 4.4e-5, 2.0: 8e-5, 8.0: 4.4e-5, 26.0: 8e-5},
        slow=True,
    ),
    "bert-base_glue_obert-30ep_unstructured90": Shipped(
        30.0, 7, 0.9, THIRTY, {0.0: 5e-5, 2.0: 5e-5, 28.0: 2.75e-5}, slow=True
    ),
    "bert-base_squad_obert-30ep_4block80": Shipped(
        30.0, 7, 0.8, {2.0: 0.7, 14.0: 0.7875, 26.0: 0.8}, {0.0: 8e-5, 28.0: 4.4e-5}
    ),
    "bert-large_squad_obert-30ep_unstructured90": Shipped(
        30.0, 7, 0.9, THIRTY, {0.0: 8e-5, 28.0: 4.4e-5}, slow=True
    ),
    "bert-base_mlm_obert-3ep_unstructured90": Shipped(
        3.0, 12, 0.9, {0.0: 0.7, 2.75: 0.9}, UPSTREAM | {0.25: 5e-4, 2.75: 5e-4}
    ),
    "bert-base_mlm_teacher-10ep_dense0": Shipped(
        10.0, 0, 0.0, rates={0.0: 1e-4, 5.0: 5e-5}
    ),
    "bert-base_downstream_transfer-8ep_unstructured90": Shipped(
        8.0, 0, 0.9, rates={0.0: 1.5e-4, 4.0: 7.575e-5}
    ),
    "bert-base_squad_obert-oneshot_2of4-50": Shipped(None, 1, 0.5, {0.0: 0.5}),
    "bert-base_squad_obert-1ep_2of4-50": Shipped(
        1.0, 1, 0.5, {0.0: 0.5}, {0.0: 8e-5, 0.5: 5.5e-5}
    ),
    "bert-base_downstream_gmp-star-10ep_unstructured90": Shipped(
        10.0, 61, 0.9, **TEN, **STAR
    ),
    "bert-base_mlm_gmp-star-3ep_unstructured90": Shipped(
        3.0, 201, 0.9, {0.0: 0.7, 1.0: 0.875, 2.0: 0.9}, UPSTREAM
    ),
    "bert-base_squad_obert-star-30ep_unstructured90": Shipped(
        30.0, 261, 0.9, {2.0: 0.7, 15.0: 0.875, 28.0: 0.9}, **STAR, slow=True
    ),
    "roberta-base_squad_obert-10ep_unstructured90": Shipped(
        10.0, 17, 0.9, {0.0: 0.7, 4.0: 0.875, 8.0: 0.9}, {0.0: 8e-5, 8.0: 8e-5}
    ),
    "roberta-base_squad_gmp-10ep_unstructured90": Shipped(
        10.0, 17, 0.9, {0.0: 0.7, 4.0: 0.875, 8.0: 0.9}, {0.0: 8e-5, 8.0: 8e-5}
    ),
    "roberta-base_mlm_gmp-5ep_unstructured90": Shipped(
        5.0, 401, 0.9, {0.0: 0.7, 2.0: 0.875, 4.0: 0.9}, UPSTREAM | {4.5: 5e-4}
    ),
    "roberta-base_downstream_transfer-10ep_unstructured90": Shipped(
        10.0, 0, 0.9, rates={0.0: 1.5e-4, 5.0: 7.5e-5}, slow=True
    ),
}


RUN = [
    pytest.param(name, marks=[pytest.mark.slow] if promise.slow else [])
    for name, promise in SHIPPED.items()
]


def test_the_table_holds_every_recipe() -> None:
    assert set(SHIPPED) == set(recipe_names()) and len(SHIPPED) == 20
    assert sum(promise.slow for promise in SHIPPED.values()) == 6
    for name in SHIPPED:
        assert name.startswith("quickstart") or NAME.fullmatch(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_planned_as_the_paper_has_it(name: str) -> None:
    plan = plan_recipe(load_recipe(recipe_path(name)))
    promise = SHIPPED[name]
    assert (plan.num_epochs, plan.num_events) == (promise.epochs, promise.events)
    assert not plan.notes
    targets = {e.epoch: e.sparsities[0] for p in plan.pruning for e in p.events}
    for epoch, sparsity in promise.schedule.items():
        assert targets[min(targets, key=lambda e: abs(e - epoch))] == pytest.approx(
            sparsity
        )
    if targets:
        assert min(targets) == pytest.approx(min(promise.schedule))
        assert max(targets) == pytest.approx(max(promise.schedule))
    rates = dict(plan.rates)
    for epoch, rate in promise.rates.items():
        # A cycle of SparseML's is a step shorter than its epochs.
        assert rates[epoch] == pytest.approx(rate, rel=1e-2)
    assert all(p.num_grads in (0, 512, 1024) for p in plan.pruning)


@pytest.mark.parametrize("name", SHIPPED)
def test_sparseml_reads_it_the_same(name: str) -> None:
    host = ScheduledModifierManager.from_yaml(str(recipe_path(name)))
    ours = RecipeManager.from_recipe(recipe_path(name)).host
    assert same_modifiers(list(ours.iter_modifiers()), list(host.iter_modifiers()))


@pytest.mark.parametrize("name", SHIPPED)
def test_its_variables_are_all_used(name: str) -> None:
    text = recipe_path(name).read_text(encoding="utf-8")
    names = re.findall(r"^(\w+): \S", text, re.MULTILINE)
    for variable in names:
        assert len(re.findall(rf"\b{variable}\b", text.split("\n\n", 1)[1])) >= 2, (
            variable
        )


@pytest.mark.parametrize(
    "name", [n for n in SHIPPED if "grad_granularity" in recipe_path(n).read_text()]
)
def test_the_engines_own_way_is_a_recipe_arg(name: str) -> None:
    text = recipe_path(name).read_text(encoding="utf-8")
    (args,) = re.findall(r"'(\{\"damp\".*?\})'", text)
    (modifier,) = RecipeManager.from_recipe(recipe_path(name), args).pruning
    assert (modifier.damp, modifier.damp_fraction) == (None, 0.01)
    assert modifier.selection == "greedy" and modifier.grad_granularity == "sample"
    (paper,) = RecipeManager.from_recipe(recipe_path(name)).pruning
    assert paper.damp == 1e-7 and paper.fisher_block_size in (32, 48, 50)


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95])
@pytest.mark.parametrize("method", ["obert", "gmp"])
def test_every_sparsity_of_obertas_tables_loads(method: str, sparsity: float) -> None:
    path = recipe_path(f"roberta-base_squad_{method}-10ep_unstructured90")
    plan = plan_recipe(load_recipe(path, {"final_sparsity": sparsity}))
    assert plan.pruning[0].events[-1].sparsities == (sparsity,)


def tiny_model(name: str) -> nn.Module:
    if name.startswith("roberta"):
        return RobertaForSequenceClassification(RobertaConfig(**SHAPE, pad_token_id=1))
    return BertForSequenceClassification(BertConfig(**SHAPE))


def batch(seed: int, size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, 40, (size, 6), generator=generator)
    return {"input_ids": tokens, "labels": tokens.sum(dim=1) % 2}


def sample_loss(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=inputs["input_ids"]).logits
    return nn.functional.cross_entropy(logits, inputs["labels"], reduction="none")


def zeros(model: nn.Module) -> tuple[int, int]:
    weights = dict(model.named_parameters())
    found = [weights[name] for name in encoder_weights(model)]
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)


def prune_as_upstream(model: nn.Module) -> None:
    """Zero nine tenths of each weight, as a model that was pruned upstream has."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in encoder_weights(model):
            flat = weights[name].view(-1)
            flat[flat.abs().argsort()[: round(0.9 * flat.numel())]] = 0.0


def small_run(name: str) -> tuple[nn.Module, RecipeManager]:
    """Train a tiny model with the recipe, a few steps in an epoch."""
    text = recipe_path(name).read_text(encoding="utf-8")
    known = yaml.safe_load(re.sub(r"!\w+", "", text))
    args = {key: value for key, value in SMALL.items() if key in known}
    manager = RecipeManager.from_recipe(recipe_path(name), args)
    model = tiny_model(name)
    if "transfer" in name:
        prune_as_upstream(model)
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
        loss = nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        loss = manager.loss(
            loss,
            model,
            optimizer,
            stepper.epoch,
            steps,
            student_outputs=outputs,
            student_inputs=inputs,
        )
        loss.backward()
        stepper.step()
        optimizer.zero_grad()
    manager.finalize(model)
    return model, manager


@pytest.mark.parametrize("name", RUN)
def test_a_small_run_ends_with_the_sparsity(name: str) -> None:
    promise = SHIPPED[name]
    model, manager = small_run(name)
    pruned, numel = zeros(model)
    parts = len(encoder_weights(model))  # each count is rounded where uniform
    unit = 4 if "4block" in name else 1
    assert abs(pruned - promise.sparsity * numel) <= max(parts, unit) / 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if "2of4" in name:
        for weight in encoder_weights(model):
            groups = dict(model.named_parameters())[weight].reshape(-1, 4)
            assert ((groups == 0).sum(dim=1) == 2).all()
    if promise.schedule:
        found = [event.epoch for event in manager.events]
        assert len(found) <= promise.events  # some have no weight left to prune
        assert found[0] == min(promise.schedule)
