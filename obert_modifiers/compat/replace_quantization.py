"""SparseML's two quantization modifiers in the keys of ours."""

from collections.abc import Mapping
from typing import Any

from obert_modifiers.compat.replace_tables import LEGACY, table_of
from obert_modifiers.compat.replace_translation import SAME, Translation

_PARTS = ("input_activations", "weights", "output_activations")
# Each part in the only form that ours has: int8 weights, uint8 inputs.
_DEFAULTS: dict[str, dict[str, Any] | None] = {
    "input_activations": {"num_bits": 8, "symmetric": False},
    "weights": {"num_bits": 8, "symmetric": True},
    "output_activations": None,
}
_NAMED = (None, "default", "deepsparse")
_LOOKUP = "Embedding"


def translate_quantization(one: Translation) -> None:
    """Translate a quantization modifier, of which same meanings are taken over."""
    legacy = table_of(one.tag, one.given) == LEGACY
    one.found.values.pop("per_channel", None)
    one.found.values.pop("ignore", None)
    if one.mode == SAME:  # its weights have all of 8 bits
        one.put("reduce_range", False)
    if one.old["disable_quantization_observer_epoch"] is None:
        one.found.values.pop("disable_observer_epoch", None)
    if legacy:
        _legacy(one)
        return
    per_channel = _scheme(one, "scheme", one.old["scheme"])
    if per_channel:
        one.put("per_channel", True, "scheme")
    names = _overrides(one) + _ignored(one, "ignore")
    if names:
        one.put("ignore", names, "ignore")
    _say_what_else_is_rounded(one, "inputs of LayerNorm, GELU and Tanh")


def _legacy(one: Translation) -> None:
    if not one.old["submodules"]:
        one.found.values.pop("submodules", None)
    embeddings = bool(one.old["quantize_embeddings"])
    one.put("quantize_embeddings", embeddings, "quantize_embeddings")
    names = _ignored(one, "exclude_module_types")
    if names:
        one.put("ignore", names, "exclude_module_types")
    rounded = ["inputs of LayerNorm, GELU and Tanh"]
    for key, what in (
        ("quantize_linear_activations", "outputs of linear layers"),
        ("quantize_embedding_activations", "outputs of embeddings"),
    ):
        if one.old[key]:
            rounded.append(what)
    _say_what_else_is_rounded(one, ", ".join(rounded))


def _say_what_else_is_rounded(one: Translation, what: str) -> None:
    one.change(
        "",
        f"SparseML also rounds what a recipe does not exclude ({what}); here weights "
        "and inputs of linear layers are rounded, and embedding matrices",
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
    for name in _PARTS:
        part = _part(scheme.get(name, _DEFAULTS[name]))
        wanted = _DEFAULTS[name]
        if isinstance(part, dict):
            strategy = part.pop("strategy", "tensor")
            channels |= name == "weights" and strategy == "channel"
            odd = strategy not in ("tensor", "channel") or part.pop("kwargs", None)
            odd = odd or (name != "weights" and strategy == "channel")
            part = {"num_bits": 8, "symmetric": False} | part
        else:
            odd = False
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
        bare = parts and all(_part(parts.get(p, _DEFAULTS[p])) is None for p in _PARTS)
        if bare:
            names += _left_out(one, key, name)
        elif name == _LOOKUP:
            # Its inputs are indices; its weights are symmetric here.
            _scheme(one, key, {**parts, "input_activations": _DEFAULTS[_PARTS[0]]})
        elif scheme not in _NAMED:
            if _scheme(one, key, scheme):
                one.refuse(key, "scheme: {weights: {strategy: channel}}", "one for all")
    return names


def _ignored(one: Translation, key: str) -> list[str]:
    found: list[str] = []
    for name in one.old[key] or []:
        found += _left_out(one, key, name)
    return found


def _left_out(one: Translation, key: str, name: str) -> list[str]:
    """Leave out a module by name, or modules of a class; return names to ignore."""
    if name == _LOOKUP:
        one.put("quantize_embeddings", False, key)
        return []
    if name == "Linear":
        one.refuse(key, "names of modules", "without linear layers nothing is left")
        return []
    # Classes have capitals; those that are left stay in floating point here anyway.
    return [] if name[:1].isupper() else [name]
