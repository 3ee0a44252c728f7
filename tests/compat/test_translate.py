"""What each key of SparseML's modifiers becomes, and what is refused."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from obert_modifiers import modifiers
from obert_modifiers.compat import (
    replace_sparseml_modifiers,
    replaced,
    restore_sparseml_modifiers,
)
from obert_modifiers.compat.replace_tables import KEYS, LEGACY, REQUIRED, TABLES
from obert_modifiers.compat.replace_translate import translate
from obert_modifiers.host import bases
from obert_modifiers.recipe import load_recipe
from obert_modifiers.recipe.check import target_class
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.recipe_text.problems import RecipeError
from tests.hosts import ON_SPARSEML, on_sparseml

GRADUAL = {
    "init_sparsity": 0.3,
    "final_sparsity": 0.8,
    "start_epoch": 1.0,
    "end_epoch": 3.0,
    "update_frequency": 0.5,
    "params": ["re:layers.*weight"],
}
MINIMAL = {tag: GRADUAL for tag in TABLES if "Pruning" in tag} | {
    "ConstantPruningModifier": {"params": ["re:layers.*weight"]},
    "LayerPruningModifier": {"layers": ["layers.0"]},
    "DistillationModifier": {},
    "QuantizationModifier": {},
}
assert set(MINIMAL) == set(TABLES) and len(TABLES) == 8


def recipe(tag: str, keys: dict) -> str:
    lines = [
        f"      {key}: {yaml.dump([v], width=9999, default_flow_style=True)}"
        for key, v in keys.items()
    ]
    lines = [re.sub(r": \[(.*)\]\n?$", r": \1", line) for line in lines]
    return "\n".join(["modifiers:", f"  - !{tag}", *lines, ""])


def sparsemls_class(name: str) -> type:
    legacy = name == LEGACY
    tag = "QuantizationModifier" if legacy else name
    return target_class(tag, {"submodules": None} if legacy else {})


def tag_and_keys(name: str) -> tuple[str, dict]:
    """SparseML's tag of a table, and a minimal recipe's keys of it."""
    if name == LEGACY:
        return "QuantizationModifier", {"submodules": ["layers"]}
    return name, dict(MINIMAL[name])


@on_sparseml
@pytest.mark.parametrize("name", KEYS)
def test_the_tables_have_sparsemls_keys_and_defaults(name) -> None:
    cls = sparsemls_class(name)
    assert cls.__module__.startswith("sparseml.")
    parameters = dict(inspect.signature(cls.__init__).parameters)
    parameters.pop("self")
    assert set(KEYS[name]) == set(parameters)
    for key, parameter in parameters.items():
        row = KEYS[name][key]
        if parameter.default is parameter.empty:
            assert row.default == REQUIRED
        elif parameter.default is not None or row.default is not None:
            assert row.default == parameter.default


@pytest.mark.parametrize("name", KEYS)
def test_the_tables_name_keys_that_ours_have(name) -> None:
    tag = "QuantizationModifier" if name == LEGACY else name
    cls = getattr(modifiers, TABLES[tag])
    ours = inspect.signature(cls.__init__).parameters
    for key, row in KEYS[name].items():
        assert not row.becomes or row.becomes in ours
        assert row.becomes or row.note
        assert row.only is None or row.default in row.only, key


def test_the_page_shows_the_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text("utf-8")
    for name, table in KEYS.items():
        _, _, rest = page.partition(f"### `!{name}`")
        section = rest.partition("\n#")[0]
        tag = "QuantizationModifier" if name == LEGACY else name
        assert f"`!{TABLES[tag]}`" in section
        shown = [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in section.splitlines()
            if line.startswith("| `")
        ]
        expected = [
            [f"`{key}`", f"`{row.becomes}`" if row.becomes else "", row.note]
            for key, row in table.items()
        ]
        assert shown == expected, name


@pytest.mark.parametrize("mode", ["same", "ours"])
@pytest.mark.parametrize("tag", TABLES)
def test_a_minimal_recipe_runs_on_ours_in_both_managers(tag, mode) -> None:
    text = recipe(tag, MINIMAL[tag])
    if ON_SPARSEML:
        (plain,) = bases.ScheduledModifierManager.from_yaml(text).iter_modifiers()
        assert type(plain).__module__.startswith("sparseml.")
    cls = getattr(modifiers, TABLES[tag])
    with replaced(mode):
        theirs = bases.ScheduledModifierManager.from_yaml(text)
        ours = RecipeManager.from_recipe(text)
    (one,), (two,) = theirs.iter_modifiers(), ours.modifiers
    assert type(one) is type(two) is cls
    assert one.identifier() == two.identifier()
    # The text that is kept with a run loads without anything replaced.
    (again,) = RecipeManager.from_recipe(ours.text).modifiers
    assert again.identifier() == one.identifier()


EXPLICIT = [
    (name, key, mode)
    for name, table in KEYS.items()
    for key, row in table.items()
    if row.default != REQUIRED
    for mode in ("same", "ours")
]
assert len(EXPLICIT) == 2 * sum(
    row.default != REQUIRED for table in KEYS.values() for row in table.values()
)
# What --replace=ours does not take over where a recipe leaves it out.
OURS_ALONE = {"fisher_block_size", "start_epoch"}


@pytest.mark.parametrize(("name", "key", "mode"), EXPLICIT)
def test_an_explicit_default_means_what_it_means_unwritten(name, key, mode) -> None:
    tag, keys = tag_and_keys(name)
    if key in keys:
        keys = {k: v for k, v in keys.items() if k != key} | {"reduce_range": False}
    unwritten = translate(tag, keys, mode)
    written = translate(tag, {**keys, key: KEYS[name][key].default}, mode)
    assert not written.faults and not unwritten.faults
    if mode == "ours" and key in OURS_ALONE:
        return
    assert written.changes == unwritten.changes
    cls = getattr(modifiers, written.name)
    one, two = (cls(**found.values) for found in (written, unwritten))
    assert one.identifier() == two.identifier()


@on_sparseml
@pytest.mark.filterwarnings("ignore:The `dict` method is deprecated")  # SparseML's own
@pytest.mark.parametrize("mode", ["same", "ours"])
@pytest.mark.parametrize("name", KEYS)
def test_a_recipe_that_sparseml_saved_means_the_same(name, mode, tmp_path) -> None:
    tag, keys = tag_and_keys(name)
    unedited, file = recipe(tag, keys), tmp_path / "saved.yaml"
    bases.ScheduledModifierManager.from_yaml(unedited).save(str(file))
    saved = file.read_text(encoding="utf-8")
    assert saved.count(":") > unedited.count(":")  # it has written defaults
    with replaced(mode):
        loaded = [RecipeManager.from_recipe(text) for text in (unedited, saved)]
        said = [
            [n.message for n in load_recipe(text).notes] for text in (unedited, saved)
        ]
    if mode == "same":
        (one,), (two,) = (manager.modifiers for manager in loaded)
        assert one.identifier() == two.identifier()
        assert said[0] == said[1]


def test_the_same_meaning_of_every_key_of_obs() -> None:
    found = translate("OBSPruningModifier", GRADUAL)
    assert found.values == {
        **GRADUAL,
        "damp": 1e-7,
        "fisher_block_size": 1,
        "grad_granularity": "batch",
        "selection": "independent",
        "update": "independent",
    }
    assert not found.changes and not found.faults
    ours = translate("OBSPruningModifier", GRADUAL, "ours")
    assert ours.values == GRADUAL
    cls = modifiers.OBERTPruningModifier
    defaults = inspect.signature(cls.__init__).parameters
    for key, same in (("num_grads", 1024), ("num_recomputations", 1)):
        assert defaults[key].default == same  # so that leaving them out is the same


def test_each_change_of_meaning_is_said() -> None:
    keys = {**GRADUAL, "num_grads": 1024, "damp": 1e-7, "fisher_block_size": 50}
    keys["grad_sampler_kwargs"] = {"batch_size": 8}
    text = recipe("OBSPruningModifier", keys)
    with replaced("ours"):
        said = [str(note) for note in load_recipe(text).notes]
    assert said == [
        "<recipe text>:9: OBSPruningModifier.num_grads: num_grads=1024 is 8,192 "
        "samples, 8 to a gradient, there, 1,024 samples with a gradient of their own "
        "here",
        "<recipe text>:10: OBSPruningModifier.damp: damp=1e-07 is absolute there; "
        "damp_fraction=0.01 of the mean diagonal here",
        "<recipe text>:2: OBSPruningModifier: selection=greedy and update=joint here, "
        "independent there",
    ]
    with replaced("same"):
        assert not load_recipe(text).notes


@pytest.mark.parametrize("mode", ["same", "ours"])
def test_changes_are_logged_by_both_managers(mode, caplog) -> None:
    text = recipe("DistillationModifier", {"hardness": 1.0})
    with replaced(mode):
        bases.ScheduledModifierManager.from_yaml(text)
        first = len(caplog.records)
        RecipeManager.from_recipe(text)
    assert (first, len(caplog.records)) == ((0, 0) if mode == "same" else (1, 2))


REFUSED = [
    ("OBSPruningModifier", {"num_grad": 3}, "num_grad", "write num_grads"),
    ("OBSPruningModifier", {"mask_type": [4, 4]}, "mask_type", "block:1x16 or block:4"),
    ("OBSPruningModifier", {"mask_type": [1, -1]}, "mask_type", "two positive"),
    ("OBSPruningModifier", {"mask_type": "block5"}, "mask_type", "use block4"),
    ("OBSPruningModifier", {"params": "encoder"}, "params", "write a list"),
    ("OBSPruningModifier", {"damp": "auto "}, "damp", "is not a number"),
    ("GMPruningModifier", {"phased": True}, "phased", "expected False"),
    ("GMPruningModifier", {"score_type": "movement"}, "score_type", "expected magn"),
    (
        "GMPruningModifier",
        {"start_epoch": -1, "init_sparsity": "__FROM_PARAM__"},
        "start_epoch",
        "expected 0.0",
    ),
    ("GMPruningModifier", {"init_sparsity": 0.9}, "init_sparsity", "above final"),
    ("ConstantPruningModifier", {"params": []}, "params", "expected names"),
    (
        "DistillationModifier",
        {"distill_output_keys": ["start_logits"]},
        "distill_output_keys",
        "expected [logits]",
    ),
    ("LayerPruningModifier", {"layers": "__ALL__"}, "layers", "whole layers"),
    ("LayerPruningModifier", {"layers": ["a.0.output"]}, "layers", "whole layers"),
    ("LayerPruningModifier", {"start_epoch": 2.0}, "start_epoch", "expected -1"),
    ("LayerPruningModifier", {"end_epoch": 2.0}, "end_epoch", "expected -1.0"),
    ("QuantizationModifier", {"scheme": "tensorrt"}, "scheme", "asymmetric uint8"),
    (
        "QuantizationModifier",
        {"scheme": {"weights": {"num_bits": 4, "symmetric": True}}},
        "scheme",
        "weights has one form",
    ),
    (
        "QuantizationModifier",
        {"scheme": {"output_activations": {"num_bits": 8}}},
        "scheme",
        "output_activations: null",
    ),
    (
        "QuantizationModifier",
        {"scheme_overrides": {"Embedding": {"weights": {"symmetric": False}}}},
        "scheme_overrides",
        "weights has one form",
    ),
    ("QuantizationModifier", {"ignore": ["Linear"]}, "ignore", "names of modules"),
    ("QuantizationModifier", {"model_fuse_fn_name": "f"}, "model_fuse_fn_name", "None"),
    ("QuantizationModifier", {"num_calibration_steps": 9}, "num_calibration_steps", ""),
    ("QuantizationModifier", {"end_epoch": 3.0}, "end_epoch", "expected -1.0"),
    ("QuantizationModifier", {"activation_bits": 4}, "activation_bits", "expected 8"),
    ("QuantizationModifier", {"reduce_range": True}, "reduce_range", "expected False"),
    ("QuantizationModifier", {"tensorrt": True}, "tensorrt", "expected False"),
    (
        "QuantizationModifier",
        {"weight_qconfig_kwargs": {"observer": "x"}},
        "weight_qconfig_kwargs",
        "refused",
    ),
]
assert len(REFUSED) == 28


@pytest.mark.parametrize(("tag", "keys", "key", "words"), REFUSED)
def test_what_is_not_supported_is_an_error_with_its_line(tag, keys, key, words) -> None:
    text = recipe(tag, {**MINIMAL[tag], **keys})
    line = next(
        n for n, one in enumerate(text.splitlines(), 1) if one.strip().startswith(key)
    )
    with replaced("same"):
        with pytest.raises(RecipeError) as ours:
            load_recipe(text)
        with pytest.raises(ValueError) as theirs:
            bases.ScheduledModifierManager.from_yaml(text)
    (problem,) = ours.value.problems
    assert (problem.line, problem.key) == (line, key) and words in problem.message
    assert words in str(theirs.value)
    assert ";" in problem.message and "expected" in problem.message


@pytest.mark.parametrize(
    ("pattern", "numbered"),
    [
        ("re:bert.encoder.layer.*.weight", False),
        ("re:bert.encoder.layer.3.*weight", True),
        (r"re:.*layer\.(0|3)\..*", True),
        ("re:.*layer.[03].output.*", True),
        ("bert.encoder.layer.2.output.dense.weight", True),
        ("re:.*layer.*output.*dense.weight", False),
    ],
)
def test_old_numbers_of_layers_are_an_error_where_layers_go(pattern, numbered) -> None:
    text = recipe("LayerPruningModifier", {"layers": ["bert.encoder.layer.1"]})
    keys = {**GRADUAL, "params": [pattern]}
    text += recipe("GMPruningModifier", keys).removeprefix("modifiers:\n")
    with replaced("same"):
        if not numbered:
            load_recipe(text)
            return
        with pytest.raises(RecipeError) as error:
            load_recipe(text)
    assert str(error.value).startswith("<recipe text>:10: GMPruningModifier.params: ")
    assert "numbered from 0 here" in str(error.value)


def test_a_missing_key_is_an_error() -> None:
    keys = {k: v for k, v in GRADUAL.items() if k != "params"}
    with replaced("same"), pytest.raises(RecipeError, match=r"params is missing"):
        load_recipe(recipe("OBSPruningModifier", keys))


QUANTIZED = [
    ({}, {}),
    ({"ignore": ["LayerNorm", "Tanh", "head"]}, {"ignore": ["head"]}),
    ({"ignore": ["Embedding"]}, {"quantize_embeddings": False}),
    ({"scheme": "deepsparse"}, {}),
    ({"scheme": {"weights": {"symmetric": True, "strategy": "channel"}}}, "channel"),
    (
        {
            "scheme_overrides": {
                "Embedding": {"input_activations": None},
                "a": "default",
            }
        },
        {},
    ),
    (
        {"scheme_overrides": {"head": {"input_activations": None, "weights": None}}},
        {"ignore": ["head"]},
    ),
    (
        {
            "submodules": ["embedding", "layers"],
            "quantize_linear_activations": False,
            "exclude_module_types": ["LayerNorm"],
            "disable_quantization_observer_epoch": 2.0,
            "freeze_bn_stats_epoch": 2.0,
        },
        {
            "submodules": ["embedding", "layers"],
            "disable_observer_epoch": 2.0,
            "quantize_embeddings": True,
        },
    ),
    ({"quantize_embeddings": False}, {"quantize_embeddings": False}),
    (
        {"quantize_linear_activations": True, "quantize_embedding_activations": True},
        {"quantize_embeddings": True},
    ),
    ({"submodules": [""]}, {"submodules": [""], "quantize_embeddings": True}),
]
assert len(QUANTIZED) == 11


def test_outputs_that_sparseml_rounds_are_said_whether_written_or_not() -> None:
    (unwritten,) = translate("QuantizationModifier", {"reduce_range": False}).changes
    assert "outputs of linear layers, outputs of embeddings)" in str(unwritten)
    keys = {"quantize_linear_activations": True}
    assert translate("QuantizationModifier", keys).changes == [unwritten]
    keys["quantize_embedding_activations"] = False
    (change,) = translate("QuantizationModifier", keys).changes
    said = str(change)
    assert "outputs of linear layers)" in said and "embeddings)" not in said


@pytest.mark.parametrize(("old", "new"), QUANTIZED)
def test_quantization(old, new) -> None:
    found = translate("QuantizationModifier", {"start_epoch": 1.0, **old})
    assert not found.faults
    new = {"per_channel": True} if new == "channel" else new
    assert found.values == {"start_epoch": 1.0, "reduce_range": False, **new}
    assert len(found.changes) == 1  # what SparseML rounds beside it
    modifiers.QATModifier(**found.values)


@on_sparseml
def test_replacing_comes_and_goes() -> None:
    def cls() -> type:
        text = recipe("OBSPruningModifier", GRADUAL)
        return type(RecipeManager.from_recipe(text).modifiers[0])

    theirs, ours = cls(), modifiers.OBERTPruningModifier
    assert theirs.__name__ == "OBSPruningModifier"
    replace_sparseml_modifiers()
    replace_sparseml_modifiers("ours")
    assert cls() is ours
    with replaced("same"):
        assert cls() is ours
    assert cls() is ours
    restore_sparseml_modifiers()
    restore_sparseml_modifiers()
    assert cls() is theirs
    with replaced(None):
        assert cls() is theirs
    with pytest.raises(ValueError, match="mode=strict is unknown"):
        replace_sparseml_modifiers("strict")
