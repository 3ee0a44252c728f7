"""The papers' further numbers, given to the shipped recipes as variables."""

import itertools
import re
from pathlib import Path

import pytest

from obert_modifiers.modifiers import FrozenParamsModifier
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.clock import event_epochs
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import RecipePlan, plan_recipe
from obert_modifiers.resources import recipe_path
from tests.modifiers.table import make_model, make_source
from tests.recipe.samples import same_modifiers
from tests.recipe.shipped import SHIPPED, tiny_model

SQUAD_10 = "bert-base_squad_obert-10ep_unstructured90"
CASES = [(name, last) for name, one in SHIPPED.items() for last in one.variants]
assert len(CASES) == 41
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


def planned(path: Path, recipe_args: dict | str) -> RecipePlan:
    """Plan a recipe with few steps in an epoch, as its rates are all that is read."""
    return plan_recipe(load_recipe(path, recipe_args), steps_per_epoch=4)


def body(name: str) -> str:
    """Return a recipe below its header and its variables."""
    text = recipe_path(name).read_text(encoding="utf-8")
    return text.split("\n\n", 2)[2]


def test_a_family_shares_its_template() -> None:
    bodies: dict[str, list[str]] = {}
    for name, promise in SHIPPED.items():
        if not name.startswith("quick"):
            bodies.setdefault(promise.family or name, []).append(body(name))
    families = [found for found in bodies.values() if len(found) > 1]
    assert (len(families), sum(map(len, families))) == (7, 22)
    assert all(len(set(found)) == 1 for found in families)
    # No two others are of one family.
    assert len({found[0] for found in bodies.values()}) == len(bodies)


@pytest.mark.parametrize(("name", "last"), CASES)
def test_every_sparsity_of_the_papers(name: str, last: float) -> None:
    schedule = SHIPPED[name].schedule
    first = schedule[min(schedule)]
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


FREEZING = {"roberta-base_downstream_transfer-10ep_unstructured90": 10.0}
FREEZING |= {"roberta-base_downstream_transfer-qat-20ep_unstructured90": 10.0}
FREEZING |= {f"roberta-base_mlm_{m}-5ep_unstructured90": 5.0 for m in ("gmp", "obert")}


@pytest.mark.parametrize("name", FREEZING)
@pytest.mark.parametrize("frozen", [0.0, 1.0])
def test_frozen_embeddings_are_a_variable(name: str, frozen: float) -> None:
    """OBERTa Tables 6, 23 and 24, "Frozen Embeddings: 1.0, 0.0"."""
    args = {"frozen_embeddings": frozen}
    manager = RecipeManager.from_recipe(recipe_path(name), args)
    (one,) = [m for m in manager.modifiers if isinstance(m, FrozenParamsModifier)]
    assert (one.start_epoch, one.end_epoch) == (0.0, frozen * FREEZING[name])
    assert len(one.resolve_targets(tiny_model(name))) == 3


@pytest.mark.parametrize("cycle", [0.25, 0.5])
def test_the_cycle_of_the_rate_upstream_is_not_that_of_pruning(cycle: float) -> None:
    """OBERT section 4.2 rewinds with each pruning event, Table 10 every half epoch."""
    path = recipe_path("bert-base_mlm_obert-3ep_unstructured90")
    plan = plan_recipe(load_recipe(path, {"lr_cycle_epochs": cycle}), steps_per_epoch=8)
    assert plan.num_events == 12
    rates = dict(plan.rates)
    assert (rates[0.25] == pytest.approx(5e-4)) == (cycle == 0.25)
    assert rates[0.5] == pytest.approx(5e-4)


UPSTREAM = [n for n in SHIPPED if "_mlm_" in n]


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstream_all_tokens_are_distilled(name: str) -> None:
    for one in RecipeManager.from_recipe(recipe_path(name)).distillation:
        assert one.mask_unlabelled is False and one.mask_padding
    teaches = "dense0" in name and "teacher" in name
    assert teaches == (not RecipeManager.from_recipe(recipe_path(name)).distillation)


UPSTREAM_GMP = [name for name in SHIPPED if "_mlm_" in name and "gmp" in name]
TRANSFER = "roberta-base_downstream_transfer-10ep_unstructured90"
DECAYS = [(TRANSFER, {"weight_decay": one}, one) for one in (0.0, 0.01, 0.05, 0.1)]
DECAYS += [(name, None, 0.01) for name in UPSTREAM_GMP]  # upstream it is in the recipe


@pytest.mark.parametrize(("name", "args", "decay"), DECAYS)
def test_the_weight_decays_of_obertas_table_23(name, args, decay) -> None:
    manager = RecipeManager.from_recipe(recipe_path(name), args)
    (found,) = [m for m in manager.modifiers if hasattr(m, "weight_decay")]
    assert (found.weight_decay, found.param_groups) == (decay, [0])


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
