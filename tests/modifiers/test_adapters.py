"""Layers with adapters: their merged weights would not be as a recipe says."""

import pytest
import torch
from torch import nn

from obert_modifiers import modifiers
from obert_modifiers.core.pruning.targets import has_adapter
from obert_modifiers.recipe.manager import RecipeError, RecipeManager
from tests.modifiers.driving import name_of
from tests.modifiers.table import ENCODER, TABLE, TinyModel, make_model

PLACES = ["layers.0.0", "layers.1.0"]
UNCONCERNED = {
    modifiers.EarlyStoppingModifier,
    modifiers.EmbeddingDistillationModifier,
    modifiers.FrozenParamsModifier,
    modifiers.LayerDropModifier,
    modifiers.LogitDistillationModifier,
    modifiers.WeightAveragingModifier,
}
CONCERNED = [row for row in TABLE if row.cls not in UNCONCERNED]
assert len({row.cls for row in CONCERNED}) == 5 and len(CONCERNED) == 19


class LoRALayer(nn.Module):
    """What peft puts in the place of a linear layer, with an adapter by name."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({
            "default": nn.Linear(base.in_features, 2, bias=False)
        })
        self.lora_B = nn.ModuleDict({
            "default": nn.Linear(2, base.out_features, bias=False)
        })

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        low = self.lora_A["default"](hidden)
        return self.base_layer(hidden) + self.lora_B["default"](low)


class OldLoRALinear(nn.Linear):
    """A linear layer with low-rank matrices of its own, as before ``base_layer``."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.lora_A = nn.Parameter(torch.ones(2, base.in_features))
        self.lora_B = nn.Parameter(torch.ones(base.out_features, 2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) + hidden @ self.lora_A.T @ self.lora_B.T


class Scaled(nn.Module):
    """Another kind of adapter around a plain layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.scale = nn.Parameter(torch.ones(base.out_features))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base_layer(hidden) * self.scale


KINDS = [LoRALayer, OldLoRALinear, Scaled]


def adapted(kind: type[nn.Module]) -> TinyModel:
    model = make_model()
    for place in PLACES:
        model.set_submodule(place, kind(model.get_submodule(place)))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", CONCERNED, ids=name_of)
def test_layers_with_adapters_are_refused(row, kind) -> None:
    model = adapted(kind)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    for call in (
        lambda one: one.resolve_targets(model),
        lambda one: one.initialize(model, **row.extras),
    ):
        with pytest.raises(ValueError) as error:
            call(row.cls(**row.keys))
        said = str(error.value)
        assert said.startswith("model=TinyModel has adapters in 2 of the layers")
        assert ", ".join(PLACES) in said
        assert said.endswith("merge first: model = model.merge_and_unload()")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_recipe_is_refused_with_its_line() -> None:
    keys = "{start_epoch: 0.0, end_epoch: 1.0, final_sparsity: 0.8}"
    manager = RecipeManager.from_recipe(
        f"modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: 2}}\n"
        f"  - !GMPStarPruningModifier {keys}\n"
    )
    with pytest.raises(RecipeError, match=r":3: .*params: model=TinyModel has adapter"):
        manager.check_model(adapted(LoRALayer))
    manager.check_model(make_model())


def test_layers_without_adapters_are_pruned_beside_them() -> None:
    model = adapted(LoRALayer)
    plain = ["layers.0.2.weight", "layers.1.2.weight"]
    modifier = modifiers.GMPStarPruningModifier(
        params=plain, final_sparsity=0.8, start_epoch=0.0, end_epoch=1.0
    )
    assert modifier.resolve_targets(model) == plain
    frozen = modifiers.FrozenParamsModifier(params=["re:.*base_layer.*"])
    assert len(frozen.resolve_targets(model)) == 4


def test_only_adapters_are_taken_for_adapters() -> None:
    model = make_model()
    assert not any(has_adapter(module) for module in model.modules())
    found = [n for n, m in adapted(LoRALayer).named_modules() if has_adapter(m)]
    assert found == PLACES
    assert has_adapter(Scaled(nn.Linear(2, 2)))
    base_layer = nn.Linear(2, 2)
    base_layer.base_layer = 4  # a number of that name is no layer
    assert not has_adapter(base_layer)
    for row in CONCERNED:
        assert row.cls(**row.keys).resolve_targets(model)
    assert set(ENCODER) <= {name for name, _ in model.named_parameters()}
