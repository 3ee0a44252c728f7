"""Keys are declared once, and a new modifier is one file and one line."""

import ast
import inspect
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from obert_modifiers import modifiers
from obert_modifiers.faults import Rule
from obert_modifiers.host.bases import Modifier
from obert_modifiers.modifiers.keys import REGISTRY, REQUIRED
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe.plan import plan_recipe
from tests.modifiers import test_contract, test_contract_states
from tests.modifiers.driving import train
from tests.modifiers.table import default_row, make_batch, make_model, sample_loss
from tests.recipe.broken import brief, error_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "obert_modifiers"
ALL_KEYS = {key for cls in REGISTRY.values() for key in cls.KEYS}


def assigned(kind: str) -> Counter:
    """Count by name what the package assigns calls of a function to."""
    found = Counter()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "modifiers.keys import" not in text:
            continue  # compat/ has a class of this name for SparseML's keys
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                call = node.value
                if getattr(call.func, "attr", "") == "means":
                    call = call.func.value
                given = {k.arg: k.value for k in call.keywords}
                if getattr(call.func, "id", "") == kind:
                    name = getattr(given.get("name"), "value", node.targets[0].id)
                    found[name] += 1
    return found


def test_each_key_is_declared_in_one_place() -> None:
    found = assigned("Key")
    assert set(found) == ALL_KEYS and len(found) == 55
    assert set(found.values()) == {1}


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_what_comes_of_the_declaration(name) -> None:
    cls = REGISTRY[name]
    assert getattr(modifiers, name) is cls
    for callable_ in (cls, cls.__init__):
        parameters = dict(inspect.signature(callable_).parameters)
        parameters.pop("self", None)
        assert list(parameters) == list(cls.KEYS)
        for key in cls.KEYS.values():
            assert parameters[key.name].default == key.default
    for key in cls.KEYS.values():
        assert key.meaning.endswith(".") and key.rule.says
        assert f"    {key.name}: {key.meaning}\n" in cls.__init__.__doc__
        if key.default is not REQUIRED:
            key.read(key.default)
    with pytest.raises(TypeError, match=f"{name}: got an unexpected keyword"):
        cls(**default_row(cls).keys, unknown=1)


def test_the_tables_of_the_docs_are_those_of_the_declaration() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        tool = import_module("keys_table")
    finally:
        sys.path.pop(0)
    written = tool.DOCS.read_text(encoding="utf-8").partition(tool.BEGIN)[2]
    assert written == f"\n{tool.tables()}", "run tools/keys_table.py"


@pytest.fixture
def new_modifier(tmp_path, monkeypatch):
    """The modifier that CONTRIBUTING shows, in a file of its own."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?class LossWeightModifier.*?)```", text, re.S)
    (tmp_path / "loss_weight.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("loss_weight").LossWeightModifier
    del REGISTRY["LossWeightModifier"], sys.modules["loss_weight"]
    for loader in (yaml.Loader, yaml.FullLoader, yaml.UnsafeLoader, yaml.SafeLoader):
        loader.yaml_constructors.pop("!pytorch.LossWeightModifier", None)


RECIPE = """\
modifiers:
  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: 2.0}}
  - !LossWeightModifier
      start_epoch: 1.0
      weight: {weight}
"""


def test_a_new_modifier_is_checked_planned_and_trained(new_modifier) -> None:
    error = error_of(RECIPE.format(weight="0.0\n      weigth: 1"))
    assert [brief(problem) for problem in error.problems] == [
        "5 LossWeightModifier.weight POSITIVE",
        "6 LossWeightModifier.weigth UNKNOWN",
    ]
    assert error.problems[0].fault.rule is Rule.POSITIVE
    plan = plan_recipe(load_recipe(RECIPE.format(weight=0.5)))
    assert [(s.modifier, s.start) for s in plan.others] == [("LossWeightModifier", 1.0)]
    manager = RecipeManager.from_recipe(RECIPE.format(weight="5e-1"))
    model, batch = make_model(), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager.initialize(model)
    shares = []

    def loss(step: int) -> torch.Tensor:
        plain = sample_loss(model, batch).mean()
        given = {"student_outputs": None, "student_inputs": batch}
        loss = manager.loss(plain, model, optimizer, step / 2, 2, **given)
        shares.append((loss / plain).item())
        return loss

    train(manager, model, optimizer, 4, per_epoch=2, loss=loss)
    manager.finalize(model)
    assert shares == [1.0, 1.0, 0.5, 0.5]


def test_a_new_modifier_keeps_the_contract(new_modifier) -> None:
    row = default_row(new_modifier)
    assert row.keys == {"weight": 0.5, "start_epoch": 1.0}
    test_contract.test_yaml_round_trip(row)
    test_contract.test_nothing_is_left_on_the_model(row)
    for at in (0, 6):
        states = test_contract_states
        states.test_resumed_at_any_step_it_goes_on_bit_for_bit(row, at, False)
    assert Modifier.load_obj(str(new_modifier(weight=2))).weight == 2.0


def test_the_line_of_a_new_modifier() -> None:
    """Each file of a modifier has one line in the package, and no other file has."""
    lines = (PACKAGE / "modifiers" / "__init__.py").read_text().splitlines()
    for name, cls in REGISTRY.items():
        assert f"from {cls.__module__} import {name}" in lines
