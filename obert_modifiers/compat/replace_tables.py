"""The keys of SparseML 1.8.0's modifiers that ours stand in for, and their meaning.

docs/migration.md shows these tables; a test holds both against SparseML's own classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REQUIRED = "required"  # in the place of a default
_SAME = "the same"


@dataclass(frozen=True)
class Key:
    """A key of a modifier of SparseML's, its default there, and our key, if any.

    `only` are the values that change nothing, where we have no such key; no others are
    accepted. None where the value is translated.
    """

    becomes: str = ""
    default: Any = REQUIRED
    note: str = _SAME
    only: tuple[Any, ...] | None = None


def _no_key(default: Any, note: str, *more: Any) -> Key:
    return Key("", default, note, (default, *more))


_PARAMS = Key("params", note="the same; empty is __ALL_PRUNABLE__")
_START = Key("start_epoch", note="the same; -1 is 0 with init_sparsity moved")
_MASK_TYPE = Key("mask_type", "unstructured", "[R, 1] and [1, C] become block:RxC")
_GRADUAL = {
    "init_sparsity": Key("init_sparsity"),
    "final_sparsity": Key("final_sparsity"),
    "start_epoch": _START,
    "end_epoch": Key("end_epoch"),
    "update_frequency": Key("update_frequency"),
    "params": _PARAMS,
    "leave_enabled": Key("leave_enabled", True),
    "inter_func": Key("inter_func", "cubic"),
    "mask_type": _MASK_TYPE,
}
_FREEZE_BN = Key("", None, "no effect: encoders have no batch normalisation")
_FUSE = _no_key(None, "no effect on encoders", "no_fuse", "conv_bn_relus", "None")
_FUSE_OPTIONS = Key("", None, "no effect on encoders", (None, {}))
_CALIBRATION = _no_key(None, "a one-shot run calibrates on 512 samples", 0)
_OBSERVER = Key("disable_observer_epoch", None, "the same")
_END = _no_key(-1.0, "SparseML only allows -1")
_MORE_OUTPUTS = "outputs are not rounded here; true is said as a note"

_CURRENT_QUANTIZATION = {
    "start_epoch": Key("start_epoch", -1.0),
    "scheme": Key("per_channel", None, "int8 weights, uint8 inputs; strategy: channel"),
    "scheme_overrides": Key("ignore", None, "weights: null; Embedding as its default"),
    "ignore": Key("ignore", None, "names; Embedding is quantize_embeddings: false"),
    "disable_quantization_observer_epoch": _OBSERVER,
    "freeze_bn_stats_epoch": _FREEZE_BN,
    "model_fuse_fn_name": _FUSE,
    "model_fuse_fn_kwargs": _FUSE_OPTIONS,
    "num_calibration_steps": _CALIBRATION,
    "strict": Key("", True, "always strict: a name that matches nothing is an error"),
    "end_epoch": _END,
}
_LEGACY_QUANTIZATION = {
    "start_epoch": Key("start_epoch", -1.0),
    "submodules": Key("submodules", None),
    "model_fuse_fn_name": _FUSE,
    "disable_quantization_observer_epoch": _OBSERVER,
    "freeze_bn_stats_epoch": _FREEZE_BN,
    "end_epoch": _END,
    "model_fuse_fn_kwargs": _FUSE_OPTIONS,
    "quantize_embeddings": Key("quantize_embeddings", True),
    "reduce_range": _no_key(False, "only 8 bits"),
    "quantize_linear_activations": Key("", True, _MORE_OUTPUTS),
    "quantize_conv_activations": Key("", True, "no effect on encoders"),
    "quantize_embedding_activations": Key("", True, _MORE_OUTPUTS),
    "activation_bits": _no_key(8, "only 8 bits"),
    "weight_bits": _no_key(8, "only 8 bits"),
    "num_calibration_steps": _CALIBRATION,
    "exclude_batchnorm": Key("", True, "no effect on encoders"),
    "exclude_module_types": Key("ignore", None, "Embedding: quantize_embeddings"),
    "custom_quantizable_module_types": Key("", None, "refused", (None, [])),
    "activation_qconfig_kwargs": Key("", None, "refused", (None, {})),
    "weight_qconfig_kwargs": Key("", None, "refused", (None, {})),
    "tensorrt": _no_key(False, "refused"),
}

# By SparseML's tag; the legacy form of QuantizationModifier has a name of its own.
LEGACY = "QuantizationModifier (legacy)"
KEYS: dict[str, dict[str, Key]] = {
    "OBSPruningModifier": _GRADUAL
    | {
        "global_sparsity": Key("global_sparsity", True),
        "num_grads": Key(
            "num_grads", 1024, "gradients of batches; with ours, of samples"
        ),
        "damp": Key("damp", 1e-7, "absolute; with ours, damp_fraction: 0.01"),
        "fisher_block_size": Key("fisher_block_size", 1, "the same; 1 if left out"),
        "grad_sampler_kwargs": Key("grad_sampler_kwargs", None),
        "num_recomputations": Key("num_recomputations", 1),
    },
    "GMPruningModifier": _GRADUAL
    | {
        "global_sparsity": Key("global_sparsity", False),
        "phased": _no_key(False, "SparseML refuses true too"),
        "score_type": _no_key("magnitude", "SparseML refuses others too"),
    },
    "MagnitudePruningModifier": dict(_GRADUAL),
    "GlobalMagnitudePruningModifier": dict(_GRADUAL),
    "ConstantPruningModifier": {
        "params": Key("params", note="the same; empty is refused"),
        "start_epoch": Key("start_epoch", -1.0),
        "end_epoch": Key("end_epoch", -1.0),
        "update_frequency": Key("", -1.0, "SparseML ignores it too"),
    },
    "DistillationModifier": {
        "start_epoch": Key("start_epoch", -1.0),
        "end_epoch": Key("end_epoch", -1.0),
        "distill_output_keys": Key("", None, "all logits; a part of them is refused"),
        "teacher_input_keys": Key("teacher_input_keys", None),
        "update_frequency": Key("", -1.0, "SparseML ignores it too"),
        "hardness": Key("hardness", 0.5),
        "temperature": Key("temperature", 2.0),
    },
    "LayerPruningModifier": {
        "layers": Key("drop", note="whole layers of the encoder, by name"),
        "start_epoch": Key("", -1.0, "-1 or 0; layers are dropped before training"),
        "end_epoch": _no_key(-1.0, "dropped layers do not come back"),
        "update_frequency": Key("", -1.0, "SparseML ignores it too"),
    },
    "QuantizationModifier": _CURRENT_QUANTIZATION,
    LEGACY: _LEGACY_QUANTIZATION,
}

# Which modifier stands in, and what its keys are that SparseML's modifier has not.
TABLES: dict[str, str] = {
    "OBSPruningModifier": "OBERTPruningModifier",
    "GMPruningModifier": "GMPStarPruningModifier",
    "MagnitudePruningModifier": "GMPStarPruningModifier",
    "GlobalMagnitudePruningModifier": "GMPStarPruningModifier",
    "ConstantPruningModifier": "ConstantMasksModifier",
    "DistillationModifier": "LogitDistillationModifier",
    "LayerPruningModifier": "LayerDropModifier",
    "QuantizationModifier": "QATModifier",
}


def table_of(tag: str, given: Iterable[str]) -> str:
    """Return the table of `KEYS` that a modifier's keys belong to.

    SparseML takes its older quantization modifier where a key is one of its own.
    """
    older = set(_LEGACY_QUANTIZATION) - set(_CURRENT_QUANTIZATION)
    if tag == "QuantizationModifier" and older & set(given):
        return LEGACY
    return tag
