"""Every recipe that ships: it loads, is planned, and a small run keeps its promise."""

import re

import pytest
import torch

from obert_modifiers import cli
from obert_modifiers.core.layer_drop import find_layers
from obert_modifiers.core.quantization.scheme import quantizers_of
from obert_modifiers.host.bases import ScheduledModifierManager
from obert_modifiers.modifiers._targets import encoder_weights
from obert_modifiers.recipe import clock, load_recipe
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from obert_modifiers.resources import recipe_names, recipe_path, recipe_setup
from tests.recipe.samples import same_modifiers
from tests.recipe.shipped import SHIPPED, small_run, zeros

NAME = re.compile(
    r"[a-z0-9-]+_[a-z0-9]+_[a-z0-9-]+_(unstructured|4block|2of4-|dense)\d+"
)
RUN = [
    pytest.param(name, marks=[pytest.mark.slow] if promise.slow else [])
    for name, promise in SHIPPED.items()
]


def test_the_table_holds_every_recipe() -> None:
    assert set(SHIPPED) == set(recipe_names()) and len(SHIPPED) == 48
    assert sum(promise.slow for promise in SHIPPED.values()) == 22
    for name, promise in SHIPPED.items():
        assert name.startswith("quickstart") or NAME.fullmatch(name)
        if not name.startswith("quickstart"):
            assert name.endswith(f"{round(100 * promise.sparsity)}")
    promised = list(SHIPPED.values())
    for kind in ("quantized", "layers", "ends"):  # each is run by the quick tests too
        kept = [p for p in promised if getattr(p, kind)]
        assert kept and any(not p.slow for p in kept), kind


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_planned_as_the_paper_has_it(name: str, monkeypatch) -> None:
    monkeypatch.setattr(clock, "GRID", 128)  # of 1024 rates in an epoch
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


SETUP = "table student teacher tasks tokens batch seeds grid".split()
NUMBERS = "tokens stride batch".split()


@pytest.mark.parametrize("name", SHIPPED)
def test_its_header_says_which_runs_it_stands_for(name: str) -> None:
    setup = recipe_setup(name)
    assert set(SETUP) <= set(setup) <= {*SETUP, "data", "stride"}
    assert setup["tasks"] and setup["seeds"] in (1, 3, 4)
    assert ("data" in setup) == (setup["tasks"] == ["mlm"])
    papers = ("oBERT ", "GMP★ ", "oBERTa ")
    ours = name.startswith(("quick", "minilm"))
    assert setup["table"] == "none" if ours else setup["table"].startswith(papers)
    for key in set(NUMBERS) & set(setup):
        by_task = setup[key] if isinstance(setup[key], dict) else {"others": setup[key]}
        assert set(by_task) <= {*setup["tasks"], "others"}
        assert "others" in by_task or set(by_task) == set(setup["tasks"])
        assert all(type(number) is int for number in by_task.values())
    for role in ("student", "teacher"):
        named = setup[role].values() if isinstance(setup[role], dict) else setup[role]
        named = [named] if isinstance(named, str) else named
        for one in named:  # a recipe's name is that of a recipe
            made = one.partition(" of ")[0]
            assert made in SHIPPED or "ep_" not in made, one
    text = recipe_path(name).read_text(encoding="utf-8")
    for variable, values in setup["grid"].items():
        assert re.search(rf"^{variable}: ", text, re.MULTILINE)
        for value in values:
            RecipeManager.from_recipe(recipe_path(name), {variable: value})


@pytest.mark.parametrize("name", SHIPPED)
def test_sparseml_reads_it_the_same(name: str) -> None:
    host = ScheduledModifierManager.from_yaml(str(recipe_path(name)))
    ours = RecipeManager.from_recipe(recipe_path(name)).host
    assert host.num_stages() == ours.num_stages()
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
    published = (1e-7, 32), (1e-7, 48), (1e-7, 50), (1e-8, 4)
    assert (paper.damp, paper.fisher_block_size) in published
    size = 16 if "glue" in name or "mlm" in name else 8
    assert paper.grad_sampler_kwargs == {"batch_size": size}


@pytest.mark.parametrize("name", RUN)
def test_a_small_run_keeps_the_promise(name: str) -> None:
    promise = SHIPPED[name]
    model, manager, ended = small_run(name)
    pruned, numel = zeros(model)
    parts = len(encoder_weights(model))  # each count is rounded where uniform
    unit = 4 if "4block" in name else 1
    most = max(parts, unit) if promise.events else parts * unit
    assert abs(pruned - promise.sparsity * numel) <= most / 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    check_groups(name, model)
    if promise.schedule:
        found = [event.epoch for event in manager.events]
        assert len(found) <= promise.events  # some have no weight left to prune
        assert found[0] == min(promise.schedule)
    if promise.layers is not None:
        assert model.config.num_hidden_layers == promise.layers[1]
        assert len(find_layers(model)[1]) == promise.layers[1]
    assert bool(quantizers_of(model)) is promise.quantized
    if promise.quantized:
        check_quantization(model)
    if promise.epochs is not None:
        assert ended == (promise.ends or promise.epochs)


def check_groups(name: str, model: torch.nn.Module) -> None:
    """Hold the zeros of each four neighbours against the recipe's structure."""
    allowed = {"2of4": {2}, "4block": {0, 4}}
    for structure, counts in allowed.items():
        if structure not in name:
            continue
        for weight in encoder_weights(model):
            groups = dict(model.named_parameters())[weight].reshape(-1, 4)
            assert set((groups == 0).sum(dim=1).tolist()) <= counts


def check_quantization(model: torch.nn.Module) -> None:
    """Every layer has its ranges, fixed, and its zeros stay zero in 8 bits."""
    found = quantizers_of(model)
    assert all(one.ready and not one.observing for one in found.values())
    weights = dict(model.named_parameters())
    encoder = encoder_weights(model)
    others = [n for n in weights if n.endswith("_embeddings.weight")]
    others += [n for n in weights if re.fullmatch(r"classifier\S*\.weight", n)]
    output = not hasattr(model, "embeds")
    assert len(others) >= 3 + output  # three embeddings and the output
    for name in [*encoder, *others]:
        layer = name.removesuffix(".weight")
        quantizer, weight = found[f"{layer}:weight"], weights[name].detach()
        rounded = quantizer(weight, False)
        assert (rounded[weight == 0] == 0).all()
        steps = rounded / quantizer.scale.reshape(-1, 1)  # of all rows, or of each
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert steps.abs().max() <= 127.001
        # A global threshold may take all of a small weight.
        assert not torch.equal(rounded, weight) or not weight.any()
        assert "_embeddings" in name or f"{layer}:input" in found


def test_embeddings_are_frozen_until_quantization() -> None:
    seen = {}

    def watch(epoch: float, model: torch.nn.Module) -> None:
        embeddings = model.roberta.embeddings
        values = [
            getattr(embeddings, f"{kind}_embeddings").weight.detach().clone()
            for kind in ("word", "position", "token_type")
        ]
        seen[epoch] = (values, model.classifier.dense.weight.detach().clone())

    small_run("roberta-base_downstream_transfer-qat-20ep_unstructured90", watch)
    first, before, after = seen[0.5], seen[10.0], seen[10.5]
    for kind in range(3):
        assert torch.equal(first[0][kind], before[0][kind])
        assert not torch.equal(before[0][kind], after[0][kind])
    assert not torch.equal(first[1], before[1])


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_checks_and_plans_it(name: str, capsys) -> None:
    path = str(recipe_path(name))
    assert cli.main(["recipe", "check", path]) == 0
    assert "no problems" in capsys.readouterr().out
    few = ["--train-samples", "128", "--batch-size", "16"]
    assert cli.main(["recipe", "plan", path, *few]) == 0
    assert "epoch" in capsys.readouterr().out
