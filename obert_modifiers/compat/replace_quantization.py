"""SparseML's two quantization modifiers in the keys of ours."""

from collections.abc import Mapping
from typing import Any

from obert_modifiers.compat.replace_tables import LEGACY, table_of
from obert_modifiers.compat.replace_translation import SAME, Translation

# The parts of a scheme, each in the only form that ours has.
_PARTS: dict[str, dict[str, Any] | None] = {
    "input_activations": {"num_bits": 8, "symmetric": False},
    "weights": {"num_bits": 8, "symmetric": True},
    "output_activations": None,
}
_MORE_ROUNDED = {
    "quantize_linear_activations": "outputs of linear layers",
    "quantize_embedding_activations": "outputs of embeddings",
}
_NAMED = (None, "default", "deepsparse")
_LOOKUP = "Embedding"


def translate_quantization(one: Translation) -> None:
    """Translate a quantization modifier, of which same meanings are taken over."""
    old, values = one.old, one.found.values
    for key in ("per_channel", "ignore"):
        values.pop(key, None)
    if one.mode == SAME:  # its weights have all of 8 bits
        one.put("reduce_range", False)
    if old["disable_quantization_observer_epoch"] is None:
        values.pop("disable_observer_epoch", None)
    rounded = ["inputs of LayerNorm, GELU and Tanh"]
    if table_of(one.tag, one.given) == LEGACY:
        if not old["submodules"]:
            values.pop("submodules", None)
        embeddings = bool(old["quantize_embeddings"])
        one.put("quantize_embeddings", embeddings, "quantize_embeddings")
        names, key = _ignored(one, "exclude_module_types"), "exclude_module_types"
        rounded += [what for flag, what in _MORE_ROUNDED.items() if old[flag]]
    else:
        if _scheme(one, "scheme", old["scheme"]):
            one.put("per_channel", True, "scheme")
        names, key = _overrides(one) + _ignored(one, "ignore"), "ignore"
    if names:
        one.put("ignore", names, key)
    one.change(
        "",
        f"SparseML also rounds what a recipe does not exclude ({', '.join(rounded)}); "
        "here weights and inputs of linear layers are rounded, and embedding matrices",
    )


def _part(value: Any) -> Any:
    if value in (None, "null", "None"):
        return None
    return dict(value) if isinstance(value, Mapping) else value


def _scheme(one: Translation, key: str, scheme: Any) -> bool:
    """Check that a scheme is one of ours; tell whether weights have one a channel."""
    if scheme in _NAMED:
        return False
    if not isinstance(scheme, Mapping):
        one.refuse(key, "deepsparse", "only int8 weights and asymmetric uint8 inputs")
        return False
    channels = False
    for name in scheme:
        if name not in (*_PARTS, "target_hardware"):
            one.refuse(key, ", ".join(_PARTS), f"{name} is not a part of a scheme")
    for name, wanted in _PARTS.items():
        part, odd = _part(scheme.get(name, wanted)), False
        if isinstance(part, dict):
            strategy, known = part.pop("strategy", "tensor"), ["tensor"]
            if name == "weights":
                known.append("channel")
                channels = channels or strategy == "channel"
            odd = bool(part.pop("kwargs", None)) or strategy not in known
            part = {"num_bits": 8, "symmetric": False} | part
        if odd or part != wanted:
            said = "null" if wanted is None else wanted
            one.refuse(key, f"{name}: {said}", f"{name} has one form here")
    return channels


def _overrides(one: Translation) -> list[str]:
    """Read the schemes of single modules; return the names that are left out."""
    names: list[str] = []
    key = "scheme_overrides"
    for name, scheme in (one.old[key] or {}).items():
        parts = scheme if isinstance(scheme, Mapping) else {}
        bare = parts and all(_part(parts.get(p, _PARTS[p])) is None for p in _PARTS)
        if bare:
            names += _left_out(one, key, name)
        elif name == _LOOKUP:
            # Its inputs are indices; its weights are symmetric here.
            inputs = {"input_activations": _PARTS["input_activations"]}
            _scheme(one, key, {**parts, **inputs})
        elif scheme not in _NAMED and _scheme(one, key, scheme):
            one.refuse(key, "scheme: {weights: {strategy: channel}}", "one for all")
    return names


def _ignored(one: Translation, key: str) -> list[str]:
    return [n for name in one.old[key] or [] for n in _left_out(one, key, name)]


def _left_out(one: Translation, key: str, name: str) -> list[str]:
    """Leave out a module by name, or modules of a class; return names to ignore."""
    if name == _LOOKUP:
        one.put("quantize_embeddings", False, key)
    elif name == "Linear":
        one.refuse(key, "names of modules", "without linear layers nothing is left")
    elif not name[:1].isupper():
        return [name]
    return []  # classes have capitals; the others stay in floating point here anyway
