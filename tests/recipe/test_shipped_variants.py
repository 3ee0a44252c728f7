"""The papers' further numbers, given to the shipped recipes as variables."""

import itertools
import re
from pathlib import Path

import pytest

from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.clock import event_epochs
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import RecipePlan, plan_recipe
from obert_modifiers.resources import recipe_path
from tests.modifiers.table import make_model, make_source
from tests.recipe.samples import same_modifiers
from tests.recipe.shipped import SHIPPED

SQUAD_10 = "bert-base_squad_obert-10ep_unstructured90"
# Recipe, its first step, and the final sparsities that the papers report or name.
SPARSITIES = [
    (SQUAD_10, 0.7, (0.8, 0.9, 0.97)),
    ("bert-base_glue_obert-10ep_unstructured90", 0.7, (0.8, 0.9, 0.97)),
    ("bert-base_squad_obert-30ep_unstructured90", 0.7, (0.8, 0.9, 0.97)),
    ("bert-base_glue_obert-30ep_unstructured90", 0.7, (0.8, 0.9, 0.97)),
    ("bert-base_squad_obert-30ep_4block80", 0.7, (0.8, 0.9)),
    ("bert-6layer_squad_obert-30ep_unstructured90", 0.3, (0.8, 0.9)),
    ("bert-3layer_squad_obert-30ep_unstructured90", 0.3, (0.8, 0.9)),
    ("bert-6layer_squad_obert-30ep_4block80", 0.3, (0.8, 0.9)),
    ("bert-3layer_squad_obert-30ep_4block80", 0.3, (0.8, 0.9)),
    ("bert-large_squad_obert-30ep_unstructured90", 0.7, (0.9, 0.95)),
    ("bert-large_squad_compound-40ep_4block95", 0.7, (0.95,)),
    ("bert-base_mlm_obert-3ep_unstructured90", 0.7, (0.9, 0.97)),
    ("bert-base_downstream_gmp-star-10ep_unstructured90", 0.7, (0.9, 0.97)),
    ("bert-large_squad_gmp-star-30ep_unstructured90", 0.7, (0.9, 0.97)),
    ("bert-base_mlm_gmp-star-3ep_unstructured90", 0.7, (0.9, 0.97)),
    ("bert-base_squad_obert-star-30ep_unstructured90", 0.7, (0.9, 0.97)),
    ("roberta-base_mlm_gmp-5ep_unstructured90", 0.7, (0.9, 0.95)),
    ("roberta-base_mlm_gmp-10ep_unstructured90", 0.7, (0.9, 0.95)),
]
CASES = [(name, first, last) for name, first, all_ in SPARSITIES for last in all_]
# Table 25 of oBERTa: SQuAD v1.1, v2.0, MNLI, QQP, IMDB, SST-2, CoNLL-2003.
TABLE_25 = {
    "base": (1.0e-5, 1.0e-5, 1.0e-5, 2.0e-5, 1.0e-5, 2.0e-5, 3.0e-5),
    "base 90 %": (1.5e-4, 1.5e-4, 7.0e-5, 1.7e-4, 1.3e-4, 9.0e-5, 1.5e-4),
    "base 95 %": (1.5e-4, 1.3e-4, 9.0e-5, 2.1e-4, 1.3e-4, 9.0e-5, 5.0e-5),
    "medium": (5.0e-5, 5.0e-5, 2.0e-5, 3.0e-5, 3.0e-5, 2.0e-5, 3.0e-5),
    "medium 90 %": (1.5e-4, 1.3e-4, 1.5e-4, 1.5e-4, 5.0e-5, 1.5e-4, 1.5e-4),
    "small": (1.5e-4, 1.5e-4, 3.0e-5, 5.0e-5, 3.0e-5, 5.0e-5, 3.0e-5),
    "small 90 %": (1.5e-4, 1.5e-4, 2.1e-4, 2.1e-4, 1.5e-4, 2.1e-4, 1.9e-4),
}
# Recipes whose text below the variables is the same: one template, other numbers.
FAMILIES = {
    "oBERT, a rewind where pruning ends": (
        SQUAD_10,
        "bert-base_glue_obert-10ep_unstructured90",
    ),
    "oBERT, a rewind with each event": (
        "bert-base_squad_obert-30ep_unstructured90",
        "bert-base_glue_obert-30ep_unstructured90",
        "bert-base_squad_obert-30ep_4block80",
        "bert-6layer_squad_obert-30ep_unstructured90",
        "bert-3layer_squad_obert-30ep_unstructured90",
        "bert-6layer_squad_obert-30ep_4block80",
        "bert-3layer_squad_obert-30ep_4block80",
        "bert-large_squad_obert-30ep_unstructured90",
    ),
    "dropped layers": (
        "bert-6layer_mlm_drop-10ep_dense0",
        "bert-3layer_mlm_drop-10ep_dense0",
    ),
    "GMP★": (
        "bert-base_downstream_gmp-star-10ep_unstructured90",
        "bert-large_squad_gmp-star-30ep_unstructured90",
    ),
    "GMP, upstream": (
        "bert-base_mlm_gmp-star-3ep_unstructured90",
        "roberta-base_mlm_gmp-5ep_unstructured90",
    ),
    "GMP with dropped layers": (
        "roberta-6layer_mlm_gmp-10ep_unstructured90",
        "roberta-3layer_mlm_gmp-10ep_unstructured90",
    ),
}


def planned(path: Path, recipe_args: dict | str) -> RecipePlan:
    """Plan a recipe with few steps in an epoch, as its rates are all that is read."""
    return plan_recipe(load_recipe(path, recipe_args), steps_per_epoch=4)


def body(name: str) -> str:
    """Return a recipe below its header and its variables."""
    text = recipe_path(name).read_text(encoding="utf-8")
    return text.split("\n\n", 2)[2]


def test_a_family_shares_its_template() -> None:
    of_family = [name for names in FAMILIES.values() for name in names]
    assert len(of_family) == len(set(of_family)) == 18
    bodies = {family: {body(n) for n in names} for family, names in FAMILIES.items()}
    assert all(len(found) == 1 for found in bodies.values())
    others = [n for n in SHIPPED if not n.startswith("quick") and n not in of_family]
    found = [body(n) for n in others] + [next(iter(b)) for b in bodies.values()]
    assert len(set(found)) == len(found)  # no two others are of one family


@pytest.mark.parametrize(("name", "first", "last"), CASES)
def test_every_sparsity_of_the_papers(name: str, first: float, last: float) -> None:
    manager = RecipeManager.from_recipe(recipe_path(name), {"final_sparsity": last})
    (modifier,) = [m for m in manager.pruning if hasattr(m, "final_sparsity")]
    epochs = event_epochs(modifier, manager.max_epochs, None)
    assert len(epochs) == SHIPPED[name].events
    modifier.initialize(make_model(), gradient_source=make_source())
    start, end = epochs[0], epochs[-1]
    assert modifier.sparsities_at(start)[0] == first
    for epoch in epochs:
        left = 1.0 - (epoch - start) / (end - start)
        expected = last + (first - last) * left**3
        assert modifier.sparsities_at(epoch) == [pytest.approx(expected)] * 4


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95])
@pytest.mark.parametrize("method", ["obert", "gmp"])
def test_every_sparsity_of_obertas_tables_loads(method: str, sparsity: float) -> None:
    path = recipe_path(f"roberta-base_squad_{method}-10ep_unstructured90")
    manager = RecipeManager.from_recipe(path, {"final_sparsity": sparsity})
    (modifier,) = manager.pruning
    assert modifier.final_sparsity == sparsity
    assert modifier.init_sparsity == pytest.approx(sparsity - 0.2)


def test_gmp_star_in_30_epochs() -> None:
    path = recipe_path("bert-base_downstream_gmp-star-10ep_unstructured90")
    manager = RecipeManager.from_recipe(path, "num_epochs=30")
    epochs = event_epochs(manager.pruning[0], manager.max_epochs, None)
    assert (manager.max_epochs, len(epochs), epochs[-1]) == (30.0, 261, 28.0)
    large = recipe_path("bert-large_squad_gmp-star-30ep_unstructured90")
    same = RecipeManager.from_recipe(large)
    assert same_modifiers(same.modifiers, manager.modifiers)


def test_what_is_searched_over_in_quantization() -> None:
    path = recipe_path("bert-base_squad_qat-10ep_4block80")
    rates, hardnesses = (1e-4, 8e-5, 5e-5, 3e-5), (0.9, 1.0)
    for rate, hardness in itertools.product(rates, hardnesses):
        args = {"init_lr": rate, "distill_hardness": hardness}
        manager = RecipeManager.from_recipe(path, args)
        assert manager.distillation[0].hardness == hardness
        plan = planned(path, args)
        assert plan.rates[0] == (0.0, rate) and plan.num_epochs == 10


@pytest.mark.parametrize("epochs", range(1, 9))
@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "pearson"])
def test_transfer_without_distillation(epochs: int, metric: str) -> None:
    path = recipe_path("bert-base_downstream_transfer-nokd-8ep_unstructured90")
    args = {"num_epochs": epochs, "metric": metric}
    manager = RecipeManager.from_recipe(path, args)
    assert manager.max_epochs == epochs and not manager.distillation
    assert manager.early_stopping.metric == metric
    rates = dict(planned(path, args).rates)
    assert rates[0.0] == 1.5e-4
    assert rates[epochs / 2] == pytest.approx((1.5e-4 + 1.5e-6) / 2)


@pytest.mark.parametrize("kind", ["10ep", "qat-20ep"])
def test_the_learning_rates_of_obertas_table_25(kind: str) -> None:
    path = recipe_path(f"roberta-base_downstream_transfer-{kind}_unstructured90")
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r"^#   (\w+(?: \d+ %)?) +((?:\d\S+ *)+)$", text, re.MULTILINE)
    printed = {name: tuple(map(float, values.split())) for name, values in rows}
    assert printed == TABLE_25
    for rate in {rate for row in TABLE_25.values() for rate in row}:
        rates = dict(planned(path, {"init_lr": rate}).rates)
        assert rates[0.0] == rate and rates[5.0] == pytest.approx(rate / 2)


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.05, 0.1])
def test_the_weight_decays_of_obertas_table_23(decay: float) -> None:
    path = recipe_path("roberta-base_downstream_transfer-10ep_unstructured90")
    manager = RecipeManager.from_recipe(path, {"weight_decay": decay})
    (found,) = [m for m in manager.modifiers if hasattr(m, "weight_decay")]
    assert (found.weight_decay, found.param_groups) == (decay, [0])


@pytest.mark.parametrize("name", [n for n in SHIPPED if "_mlm_" in n and "gmp" in n])
def test_upstream_weight_decay_is_in_the_recipe(name: str) -> None:
    manager = RecipeManager.from_recipe(recipe_path(name))
    (found,) = [m for m in manager.modifiers if hasattr(m, "weight_decay")]
    assert (found.weight_decay, found.param_groups) == (0.01, [0])


@pytest.mark.parametrize(("layers", "first"), [(12, 0.7), (6, 0.5), (3, 0.3)])
def test_obertas_first_steps(layers: int, first: float) -> None:
    name = "base" if layers == 12 else f"{layers}layer"
    staged = recipe_path(f"roberta-{name}_mlm_gmp-10ep_unstructured90")
    assert RecipeManager.from_recipe(staged).host.num_stages() == 2
    alone = recipe_path("roberta-base_mlm_gmp-5ep_unstructured90")
    for path, args in ((staged, None), (alone, {"init_sparsity": first})):
        manager = RecipeManager.from_recipe(path, args)
        (modifier,) = manager.pruning
        assert modifier.init_sparsity == first
        # A hundred in each of four epochs, and the last.
        assert len(event_epochs(modifier, manager.max_epochs, None)) == 401


def test_gmp_stars_transfer_is_a_recipe_arg() -> None:
    path = recipe_path("bert-base_downstream_transfer-8ep_unstructured90")
    (args,) = re.findall(r"'(\{\"init_lr\".*?\})'", path.read_text(encoding="utf-8"))
    rates = dict(planned(path, args).rates)
    assert rates[0.0] == 1.5e-5 and rates[4.0] == pytest.approx(7.575e-6)
