"""From the keys of SparseML's modifiers to those of ours.

The meaning of each key is that of SparseML 1.8.0's classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from obert_modifiers.compat.replace_quantization import translate_quantization
from obert_modifiers.compat.replace_translation import OURS, SAME, Translation
from obert_modifiers.faults import Rule
from obert_modifiers.modifiers._targets import ALL_PRUNABLE
from obert_modifiers.recipe_text.replacing import Translated

_POWERS = {"linear": 1.0, "cubic": 3.0, "inverse_cubic": 1.0 / 3.0}
_ALL_OUTPUTS = ([], ["logits"], [0], ["start_logits", "end_logits"])


def translate(tag: str, given: Mapping[str, Any], mode: str = SAME) -> Translated:
    """Translate a modifier of SparseML's; `faults` holds what is not supported."""
    one = Translation(tag, given, mode)
    if not one.found.faults:
        _RULES[tag](one)
    return one.found


def _pruning(one: Translation) -> None:
    _params(one)
    _mask_type(one)
    if one.old["start_epoch"] == -1:
        _start_before_zero(one)


def _params(one: Translation) -> None:
    # SparseML knows its tokens in any case, by themselves or in a list.
    params = one.old["params"]
    if isinstance(params, str):
        one.put("params", params.upper(), "params")
        if params.upper() not in ("__ALL__", ALL_PRUNABLE):
            broken = f"params={params} is not a token of SparseML's"
            expected = f"a list of names or re: patterns, __ALL__ or {ALL_PRUNABLE}"
            one.fault(Rule.NAMES, "params", broken, expected, "write a list")
    elif not params and not isinstance(one.old.get("final_sparsity"), dict):
        if one.mode == SAME:
            one.put("params", ALL_PRUNABLE, "params", "what SparseML takes for none")
            return
        one.found.values.pop("params", None)
        one.change(
            "params",
            "params is empty: all linear, convolution and embedding weights there, "
            "the encoder's linear weights here",
        )


def _mask_type(one: Translation) -> None:
    key, value = "mask_type", one.old["mask_type"]
    if value == "tensorrt":
        one.put(key, "2:4", key)
    if not isinstance(value, (list, tuple)):
        return
    if len(value) != 2 or any(type(size) is not int or size <= 0 for size in value):
        one.refuse(key, "two positive numbers", "others need the model's shape")
        return
    (rows, columns), count = value, value[0] * value[1]
    tile, row = f"block:{rows}x{columns}", f"block:1x{count}"
    if rows > 1 and columns > 1 and one.mode == SAME:
        broken = f"mask_type={value} is not supported: SparseML 1.8.0 prunes {count} "
        broken += f"consecutive weights for it, not {rows} x {columns} tiles"
        fix = f"write {row} or {tile} in a converted recipe"
        one.fault(Rule.MASK_TYPE, key, broken, "one of the two", fix)
        return
    one.put(key, tile, key)
    if rows > 1 and columns > 1:
        there = f"{count} consecutive weights there"
        one.change(key, f"{key}={value}: {there}, tiles of {rows} x {columns} here")


def _start_before_zero(one: Translation) -> None:
    """Keep the curve of a schedule that SparseML counts from epoch -1."""
    old, first = one.old, one.old["init_sparsity"]
    try:
        end, last = float(old["end_epoch"]), float(old["final_sparsity"])
        first = float(first)
        power = _POWERS[old["inter_func"]]
    except (TypeError, ValueError, KeyError):
        one.refuse("start_epoch", 0.0, "a schedule from -1 on needs plain sparsities")
        return
    one.put("start_epoch", 0.0, "start_epoch", "was -1, from where SparseML counts")
    if one.mode == OURS:
        one.change("start_epoch", "start_epoch=-1: the schedule begins at 0 here")
    elif first != last:
        share = (end / (end + 1.0)) ** power
        moved = last - (last - first) * share
        one.put("init_sparsity", moved, "init_sparsity", "its value at 0, from -1 on")


def _obs(one: Translation) -> None:
    _pruning(one)
    if one.mode == SAME:
        one.put("damp", one.old["damp"], "damp")
        rules = {"grad_granularity": "batch"}
        rules |= dict.fromkeys(("selection", "update"), "independent")
        for key, value in rules.items():
            one.put(key, value, comment="as in SparseML")
        return
    options = one.old["grad_sampler_kwargs"] or {}
    grads, size = one.old["num_grads"], options.get("batch_size")
    there = f"{grads} batches"
    if type(grads) is int and type(size) is int:
        there = f"{grads * size:,} samples, {size} to a gradient,"
    here = f"{grads:,} samples with a gradient of their own here"
    one.change("num_grads", f"num_grads={grads} is {there} there, {here}")
    one.found.values.pop("damp", None)
    there = f"damp={one.old['damp']} is absolute there"
    one.change("damp", f"{there}; damp_fraction=0.01 of the mean diagonal here")
    one.change("", "selection=greedy and update=joint here, independent there")
    if "fisher_block_size" not in one.given:
        one.change("fisher_block_size", "fisher_block_size is 1 there, 48 here")


def _gmp(one: Translation) -> None:
    _pruning(one)
    if one.tag == "GlobalMagnitudePruningModifier":
        one.put("global_sparsity", True, comment="as its name says")


def _distillation(one: Translation) -> None:
    key = "distill_output_keys"
    named = sorted(map(str, one.old[key] or []))
    if named not in [sorted(map(str, each)) for each in _ALL_OUTPUTS]:
        expected = "[logits] or [start_logits, end_logits]"
        one.refuse(key, expected, "all logits are distilled")
    if not one.old["teacher_input_keys"]:
        one.found.values.pop("teacher_input_keys", None)
    if one.mode == SAME:
        one.put("mask_padding", False, comment="as in SparseML")
    else:
        one.change("", "padding and tokens without a label count there, not here")


def _constant(one: Translation) -> None:
    if one.old["params"]:
        _params(one)
    else:
        one.refuse("params", "names of parameters", "SparseML finds none")


def _layers(one: Translation) -> None:
    if one.old["start_epoch"] not in (-1, 0):
        one.refuse("start_epoch", -1, "layers are dropped before training")
    layers = one.old["layers"]
    names = [layers] if isinstance(layers, str) else list(layers or [])
    if not names or not all(str(n).rpartition(".")[2].isdigit() for n in names):
        one.refuse("layers", "[bert.encoder.layer.1, ...]", "only whole layers")
        return
    one.put("drop", names, "layers", "what is left is numbered anew")
    one.change(
        "layers",
        "the layers that stay are numbered from 0 here; patterns of other modifiers "
        "that name layers by their old numbers have to be changed",
    )


_RULES: dict[str, Callable[[Translation], None]] = {
    "OBSPruningModifier": _obs,
    "GMPruningModifier": _gmp,
    "MagnitudePruningModifier": _gmp,
    "GlobalMagnitudePruningModifier": _gmp,
    "ConstantPruningModifier": _constant,
    "DistillationModifier": _distillation,
    "LayerPruningModifier": _layers,
    "QuantizationModifier": translate_quantization,
}
