"""Layer dropping in a recipe: before everything else, and for good."""

import copy

import pytest
import torch
import transformers
from torch import nn

from obert_modifiers.host.bases import ScheduledModifierManager, silent_loggers
from obert_modifiers.modifiers import LayerDropModifier
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe_text.problems import RecipeError
from obert_modifiers.training import TrainConfig, train
from tests.modifiers.driving import SMALL, same
from tests.modifiers.table import make_batch, make_model
from tests.training.test_training import make_task

SIZE = SMALL | {"vocab_size": 50, "max_position_embeddings": 32}
SIZE["initializer_range"] = 0.3
MODERN = {f"{name}_token_id": 1 for name in ("pad", "cls", "sep", "bos", "eos")}
DISTIL = {"vocab_size": 50, "dim": 32, "n_layers": 6, "n_heads": 2, "hidden_dim": 64}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 4, "n_head": 2}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
MODERN |= {**SIZE, "num_hidden_layers": 7, "local_attention": 4}
CLASSIFIER = "BertForSequenceClassification"
FAMILIES = {
    "bert-12": ("BertModel", "Bert", {**SIZE, "num_hidden_layers": 12}),
    "bert-4": (CLASSIFIER, "Bert", {**SIZE, "num_hidden_layers": 4}),
    "distilbert": ("DistilBertForQuestionAnswering", "DistilBert", DISTIL),
    "modernbert": (f"Modern{CLASSIFIER}", "ModernBert", MODERN),
    "gpt2": ("GPT2Model", "GPT2", GPT2),
}
assert len(FAMILIES) == 5


@pytest.fixture(autouse=True)
def quiet():
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.set_verbosity(level)
    transformers.utils.logging.enable_progress_bar()


def make(family: str, **more) -> nn.Module:
    cls, kind, config = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**config, **more)
    return getattr(transformers, cls)(config).eval()


def drop(model: nn.Module, **keys) -> None:
    LayerDropModifier(**keys).initialize(model, loggers=silent_loggers())


def tokens() -> torch.Tensor:
    return torch.randint(2, 50, (3, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(model: nn.Module) -> torch.Tensor:
    return model(input_ids=tokens())[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_model_reloads_with_the_same_outputs(family, tmp_path) -> None:
    model = make(family)
    dense = outputs(model)
    teacher = type(model)(model.config)  # with the student's own configuration
    teacher.load_state_dict(model.state_dict())
    teacher.eval()
    drop(model, keep=3)
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert again.config.num_hidden_layers == 3
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(outputs(again.eval()), outputs(model))
    assert not torch.allclose(outputs(model), dense, atol=1e-3)
    assert torch.equal(outputs(teacher), dense)
    assert teacher.config.num_hidden_layers > 3


def test_bert_computes_what_its_kept_layers_compute() -> None:
    """Through the layers one by one; the ones beside them as control."""
    model = make("bert-12")
    dense = copy.deepcopy(model)
    drop(model, keep=3)

    def by_hand(*kept: int) -> torch.Tensor:
        hidden = dense.embeddings(input_ids=tokens())
        for index in kept:
            hidden = dense.encoder.layer[index](hidden)
        return hidden[0] if isinstance(hidden, tuple) else hidden

    with torch.no_grad():
        torch.testing.assert_close(outputs(model), by_hand(0, 6, 11))
        assert not torch.allclose(outputs(model), by_hand(0, 5, 11), atol=1e-3)


def test_gpt2_layers_that_compute_with_their_number_are_refused() -> None:
    model = make("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ValueError, match="has scale_attn_by_inverse_layer_idx, by"):
        LayerDropModifier(keep=3).plan(model)


RECIPE = """\
modifiers:
  - !GMPStarPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.5
      start_epoch: 0.0
      end_epoch: 0.0
      params: [{params}]
  - !LayerDropModifier
      keep: [0, 3]
"""


def test_layers_go_before_the_others_look_for_parameters() -> None:
    """In our manager and in SparseML's own, however the recipe orders them."""
    recipe = RECIPE.format(params="__ALL_ENCODER__")
    manager = RecipeManager.from_recipe(recipe)
    manager.initialize(make("bert-4"))
    (pruning,) = manager.pruning
    assert {name.split(".")[3] for name in pruning.module_masks.names} == {"0", "1"}
    host = ScheduledModifierManager.from_yaml(recipe)
    assert isinstance(host.modifiers[0], LayerDropModifier)
    # A name that only the dense model has, and layers that no model has.
    dense = RECIPE.format(params="'re:bert.encoder.layer.3.*weight'")
    with pytest.raises(ValueError, match="matches no parameter"):
        RecipeManager.from_recipe(dense).initialize(make("bert-4"))
    lacking = RecipeManager.from_recipe(recipe.replace("[0, 3]", "[0, 9]"))
    for call in (lacking.apply_structure, lacking.check_model, lacking.initialize):
        with pytest.raises(RecipeError, match=r"keep=\[0, 9\] names layer 9 of a mo"):
            call(make("bert-4"))


def test_it_happens_once_for_a_model() -> None:
    manager = RecipeManager.from_recipe(RECIPE.format(params="__ALL_ENCODER__"))
    model = make("bert-4")
    manager.apply_structure(model)

    manager.check_model(model)
    manager.apply_structure(model)
    manager.initialize(model)
    assert model.config.num_hidden_layers == 2
    (drop,) = (m for m in manager.modifiers if isinstance(m, LayerDropModifier))
    assert drop.kept == drop.plan(model) == (0, 3)
    state = manager.state_dict()
    manager.load_state_dict(state)
    state[drop.identifier()] = {"kept": (0, 1)}
    with pytest.raises(ValueError, match=r"state keeps the layers \[0, 1\], the model"):
        manager.load_state_dict(state)


def test_an_optimizer_from_before_is_refused() -> None:
    model = make("bert-4")
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = RecipeManager.from_recipe(RECIPE.format(params="__ALL_ENCODER__"))
    manager.initialize(model)
    manager.update(model, early, 0.0, 4)
    with pytest.raises(RuntimeError, match="optimizer=SGD holds 32 parameters of dro"):
        manager.pre_step(model, early, 0.0, 4)
    manager.pre_step(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.0, 4)


def test_a_model_wrapped_before_is_refused(tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(make("bert-4"))
        with pytest.raises(RuntimeError, match="call RecipeManager.apply_structure fi"):
            drop(wrapped, keep=3)
    finally:
        torch.distributed.destroy_process_group()


DISTILLED = """\
modifiers:
  - !LayerDropModifier
      keep: [0, 3]
  - !LogitDistillationModifier
      hardness: 1.0
"""


@pytest.mark.parametrize("early", [True, False])
def test_self_is_the_dense_model(early) -> None:
    model = make("bert-4")
    dense = copy.deepcopy(model)
    manager = RecipeManager.from_recipe(DISTILLED)
    if early:
        manager.apply_structure(model, teacher="self")
    manager.initialize(model, teacher="self")
    (distiller,) = manager.distillation
    teacher = distiller._teacher_model
    assert torch.equal(outputs(teacher), outputs(dense))
    assert teacher.config.num_hidden_layers == 4 and not teacher.training
    assert not torch.equal(outputs(model), outputs(teacher))


def test_self_after_the_layers_are_gone_is_refused() -> None:
    model = make("bert-4")
    manager = RecipeManager.from_recipe(DISTILLED)
    manager.apply_structure(model)
    with pytest.raises(RuntimeError, match="teacher=self comes after the layers were"):
        manager.initialize(model, teacher="self")


class Deep(nn.Module):
    """Four layers over tokens, for the training loop's own data."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return {"logits": self.head(hidden.mean(dim=1))}


TRAINED = """\
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}
  - !GMPStarPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.5
      start_epoch: 0.5
      end_epoch: 0.5
      params: [layers.0.weight, layers.1.weight]
  - !LayerDropModifier
      keep: [1, 3]
  - !LogitDistillationModifier
      hardness: 0.5
"""


def test_a_model_with_one_layer_left_is_adopted() -> None:
    model = make_model()
    LayerDropModifier(keep=[1]).initialize(model)
    adopted = LayerDropModifier(keep=[1])
    adopted.adopt(model)
    assert adopted.kept == (0,)
    adopted.initialize(model)  # which has nothing left to drop
    assert len(model.layers) == 1


def test_the_training_loop_drops_before_it_makes_its_optimizer(tmp_path) -> None:
    torch.manual_seed(0)
    model = Deep()
    config = TrainConfig(tmp_path, per_device_train_batch_size=8, cpu=True)
    manager = RecipeManager.from_recipe(TRAINED)
    result = train(model, make_task(), config, manager, teacher="self")
    assert len(model.layers) == 2 and result.sparsity == 0.5
    for layer in model.layers:
        assert int((layer.weight == 0).sum()) == 32
    assert model(make_batch()["tokens"])["logits"].shape == (8, 2)


NAMED = [f"bert.encoder.layer.{i}" for i in range(5)]


def test_layers_that_go_by_name() -> None:
    one, two = make("bert-4"), make("bert-4")
    assert LayerDropModifier(drop=NAMED[1:3]).plan(one) == (0, 3)
    drop(one, drop=NAMED[1:3])
    drop(two, keep=[0, 3])
    assert one.config.num_hidden_layers == 2
    assert same(one, two)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"drop": NAMED[4:]}, "is not a layer of the encoder; expected names"),
        ({"drop": NAMED[:4]}, "leaves none of the 4"),
        ({}, "keep is missing"),
        ({"drop": []}, "is no list of names"),
        ({"drop": [1]}, "is no list of names"),
        ({"drop": NAMED[1:3], "keep": 2}, "and keep or choice are both given"),
    ],
)
def test_names_that_are_refused(keys, said) -> None:
    with pytest.raises(ValueError, match=said):
        drop(make("bert-4"), **keys)
