"""What each key of SparseML's modifiers becomes, and what is refused."""

import inspect
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


OBS, GMP, LAYERS = "OBSPruningModifier", "GMPruningModifier", "LayerPruningModifier"
QUANTIZATION = "QuantizationModifier"


def recipe(tag: str, keys: dict) -> str:
    lines = ["modifiers:", f"  - !{tag}"]
    for key, value in keys.items():
        shown = yaml.dump([value], width=9999, default_flow_style=True).strip()
        lines.append(f"      {key}: {shown[1:-1]}")
    return "\n".join([*lines, ""])


def tag_of(name: str) -> str:
    """SparseML's tag of a table."""
    return QUANTIZATION if name == LEGACY else name


def tag_and_keys(name: str) -> tuple[str, dict]:
    """SparseML's tag of a table, and a minimal recipe's keys of it."""
    keys = {"submodules": ["layers"]} if name == LEGACY else dict(MINIMAL[name])
    return tag_of(name), keys


@on_sparseml
@pytest.mark.parametrize("name", KEYS)
def test_the_tables_have_sparsemls_keys_and_defaults(name) -> None:
    cls = target_class(tag_of(name), {"submodules": None} if name == LEGACY else {})
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
    cls = getattr(modifiers, TABLES[tag_of(name)])
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
        assert f"`!{TABLES[tag_of(name)]}`" in section
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


@pytest.mark.parametrize("name", [one for one in KEYS if "params" in KEYS[one]])
def test_the_tables_say_what_empty_params_are(name) -> None:
    found = translate(name, {**MINIMAL[name], "params": []})
    said = KEYS[name]["params"].note
    assert said == f"the same; empty is {_taken(found)}"


def _taken(found) -> str:
    return "refused" if found.faults else found.values["params"]


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
    found = translate(OBS, GRADUAL)
    assert found.values == {
        **GRADUAL,
        "damp": 1e-7,
        "fisher_block_size": 1,
        "grad_granularity": "batch",
        "selection": "independent",
        "update": "independent",
    }
    assert not found.changes and not found.faults
    ours = translate(OBS, GRADUAL, "ours")
    assert ours.values == GRADUAL
    cls = modifiers.OBERTPruningModifier
    defaults = inspect.signature(cls.__init__).parameters
    for key, same in (("num_grads", 1024), ("num_recomputations", 1)):
        assert defaults[key].default == same  # so that leaving them out is the same


def test_each_change_of_meaning_is_said() -> None:
    keys = {**GRADUAL, "num_grads": 1024, "damp": 1e-7, "fisher_block_size": 50}
    keys["grad_sampler_kwargs"] = {"batch_size": 8}
    text = recipe(OBS, keys)
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


FOUR_BITS = {"weights": {"num_bits": 4, "symmetric": True}}
ODD_EMBEDDING = {"Embedding": {"weights": {"symmetric": False}}}
# The key that is refused comes last.
REFUSED = [
    (OBS, {"num_grad": 3}, "write num_grads"),
    (OBS, {"mask_type": [4, 4]}, "block:1x16 or block:4"),
    (OBS, {"mask_type": [1, -1]}, "two positive"),
    (OBS, {"mask_type": "block5"}, "use block4"),
    (OBS, {"params": "encoder"}, "write a list"),
    (OBS, {"damp": "auto "}, "is not a number"),
    (GMP, {"phased": True}, "expected False"),
    (GMP, {"score_type": "movement"}, "expected magn"),
    (GMP, {"init_sparsity": "__FROM_PARAM__", "start_epoch": -1}, "expected 0.0"),
    (GMP, {"init_sparsity": 0.9}, "above final"),
    ("ConstantPruningModifier", {"params": []}, "expected names"),
    ("DistillationModifier", {"distill_output_keys": ["start_logits"]}, "[logits]"),
    (LAYERS, {"layers": "__ALL__"}, "whole layers"),
    (LAYERS, {"layers": ["a.0.output"]}, "whole layers"),
    (LAYERS, {"start_epoch": 2.0}, "expected -1"),
    (LAYERS, {"end_epoch": 2.0}, "expected -1.0"),
    (QUANTIZATION, {"scheme": "tensorrt"}, "asymmetric uint8"),
    (QUANTIZATION, {"scheme": FOUR_BITS}, "weights has one form"),
    (
        QUANTIZATION,
        {"scheme": {"output_activations": {"num_bits": 8}}},
        "output_activations: null",
    ),
    (QUANTIZATION, {"scheme_overrides": ODD_EMBEDDING}, "weights has one form"),
    (QUANTIZATION, {"ignore": ["Linear"]}, "names of modules"),
    (QUANTIZATION, {"model_fuse_fn_name": "f"}, "None"),
    (QUANTIZATION, {"num_calibration_steps": 9}, ""),
    (QUANTIZATION, {"end_epoch": 3.0}, "expected -1.0"),
    (QUANTIZATION, {"activation_bits": 4}, "expected 8"),
    (QUANTIZATION, {"reduce_range": True}, "expected False"),
    (QUANTIZATION, {"tensorrt": True}, "expected False"),
    (QUANTIZATION, {"weight_qconfig_kwargs": {"observer": "x"}}, "refused"),
]
assert len(REFUSED) == 28


@pytest.mark.parametrize(("tag", "keys", "words"), REFUSED)
def test_what_is_not_supported_is_an_error_with_its_line(tag, keys, words) -> None:
    text, key = recipe(tag, {**MINIMAL[tag], **keys}), [*keys][-1]
    lines = [one.strip().partition(":")[0] for one in text.splitlines()]
    line = lines.index(key) + 1
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
    text = recipe(LAYERS, {"layers": ["bert.encoder.layer.1"]})
    keys = {**GRADUAL, "params": [pattern]}
    text += recipe(GMP, keys).removeprefix("modifiers:\n")
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
        load_recipe(recipe(OBS, keys))


NO_INPUTS = {"input_activations": None}
SUBMODULES = {"submodules": ["embedding", "layers"]}
LEGACY_KEYS = SUBMODULES | {
    "quantize_linear_activations": False,
    "exclude_module_types": ["LayerNorm"],
    "disable_quantization_observer_epoch": 2.0,
    "freeze_bn_stats_epoch": 2.0,
}
EMBEDDINGS = {"quantize_embeddings": True}
QUANTIZED = [
    ({}, {}),
    ({"ignore": ["LayerNorm", "Tanh", "head"]}, {"ignore": ["head"]}),
    ({"ignore": ["Embedding"]}, {"quantize_embeddings": False}),
    ({"scheme": "deepsparse"}, {}),
    (
        {"scheme": {"weights": {"symmetric": True, "strategy": "channel"}}},
        {"per_channel": True},
    ),
    ({"scheme_overrides": {"Embedding": NO_INPUTS, "a": "default"}}, {}),
    (
        {"scheme_overrides": {"head": {**NO_INPUTS, "weights": None}}},
        {"ignore": ["head"]},
    ),
    (LEGACY_KEYS, SUBMODULES | EMBEDDINGS | {"disable_observer_epoch": 2.0}),
    ({"quantize_embeddings": False}, {"quantize_embeddings": False}),
    (
        dict.fromkeys(
            ("quantize_linear_activations", "quantize_embedding_activations"), True
        ),
        EMBEDDINGS,
    ),
    ({"submodules": [""]}, {"submodules": [""], **EMBEDDINGS}),
]
assert len(QUANTIZED) == 11


def test_outputs_that_sparseml_rounds_are_said_whether_written_or_not() -> None:
    (unwritten,) = translate(QUANTIZATION, {"reduce_range": False}).changes
    assert "outputs of linear layers, outputs of embeddings)" in str(unwritten)
    keys = {"quantize_linear_activations": True}
    assert translate(QUANTIZATION, keys).changes == [unwritten]
    keys["quantize_embedding_activations"] = False
    (change,) = translate(QUANTIZATION, keys).changes
    said = str(change)
    assert "outputs of linear layers)" in said and "embeddings)" not in said


@pytest.mark.parametrize(("old", "new"), QUANTIZED)
def test_quantization(old, new) -> None:
    found = translate(QUANTIZATION, {"start_epoch": 1.0, **old})
    assert not found.faults
    assert found.values == {"start_epoch": 1.0, "reduce_range": False, **new}
    assert len(found.changes) == 1  # what SparseML rounds beside it
    modifiers.QATModifier(**found.values)


@on_sparseml
def test_replacing_comes_and_goes() -> None:
    def cls() -> type:
        text = recipe(OBS, GRADUAL)
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
