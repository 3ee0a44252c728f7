"""A transformers encoder as the sparse engine takes it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from obert_modifiers.core.embedding import Pooling
from obert_modifiers.core.outputs import EMBEDDING
from obert_modifiers.core.quantization.layers import Quantized
from obert_modifiers.deploy.grid import to_grid
from obert_modifiers.runtime.model import PARTS, TABLES
from obert_modifiers.runtime.weights import Linear, from_dense

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "relu": "relu",
}
# Where a family keeps the parts of a layer.
_BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm0": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm1": "output.LayerNorm",
    "products": "attention.self",
}
_DISTILBERT = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "output": "attention.out_lin",
    "norm0": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm1": "output_layer_norm",
    "products": "attention",
}
_FAMILIES = {
    "bert": ("encoder.layer", _BERT),
    "roberta": ("encoder.layer", _BERT),
    "xlm-roberta": ("encoder.layer", _BERT),
    "camembert": ("encoder.layer", _BERT),
    "electra": ("encoder.layer", _BERT),
    "distilbert": ("transformer.layer", _DISTILBERT),
}
# By what follows the family in a class's name: is it computed from the first token,
# and by which modules: of several names the first that the model has, with the
# activation behind it ("act" for the family's, "head" for that of its classifier); a
# layer normalisation has none.
_Steps = tuple[tuple[tuple[str, ...], str], ...]
_HEADS: dict[str, tuple[bool, tuple[str, ...], _Steps]] = {
    "ForSequenceClassification": (
        True,
        ("logits",),
        (
            (("classifier.dense",), "head"),
            (("pre_classifier",), "relu"),
            (("bert.pooler.dense",), "tanh"),
            (("classifier.out_proj", "classifier"), "none"),
        ),
    ),
    "ForTokenClassification": (False, ("logits",), ((("classifier",), "none"),)),
    "ForQuestionAnswering": (
        False,
        ("start_logits", "end_logits"),
        ((("qa_outputs",), "none"),),
    ),
    "ForMaskedLM": (
        False,
        ("logits",),
        (
            (
                (
                    "cls.predictions.transform.dense",
                    "lm_head.dense",
                    "vocab_transform",
                    "generator_predictions.dense",
                ),
                "act",
            ),
            (
                (
                    "cls.predictions.transform.LayerNorm",
                    "lm_head.layer_norm",
                    "vocab_layer_norm",
                    "generator_predictions.LayerNorm",
                ),
                "norm",
            ),
            (
                (
                    "cls.predictions.decoder",
                    "lm_head.decoder",
                    "vocab_projector",
                    "generator_lm_head",
                ),
                "none",
            ),
        ),
    ),
}
# Families whose heads have the configuration's activation; those of others have GELU.
_OWN_ACT = ("bert", "distilbert")
_ROBERTA = ("roberta", "xlm-roberta", "camembert")


def describe(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Collect the description and the arrays that the engine needs of a model.

    Raises:
        ValueError: If its family, head, activation or attention is not one of those
            that the engine computes; it is named.
    """
    activation = _activation(model)
    base = model.base_model
    where, names = _FAMILIES[model.config.model_type]
    layers = list(base.get_submodule(where))
    found = _Collected()
    scales = found.tables(base.embeddings)
    found.norm("embedding_norm", base.embeddings.LayerNorm)
    if hasattr(base, "embeddings_project"):
        found.linear("project", base.embeddings_project)
    for i, layer in enumerate(layers):
        for part in PARTS:
            found.linear(f"layers.{i}.{part}", layer.get_submodule(names[part]))
        for part in ("norm0", "norm1"):
            found.norm(f"layers.{i}.{part}", layer.get_submodule(names[part]))
    products = [layer.get_submodule(names["products"]) for layer in layers]
    spec = {
        "outputs": _outputs(model, activation, found),
        "model": _sizes(model, layers[0], names, found.arrays)
        | {"layers": len(layers), "activation": activation},
        "linears": found.linears,
        "attention": [_grids(one) for one in products],
        "tables": scales,
    }
    return spec, found.arrays


def _activation(model: PreTrainedModel) -> str:
    """Check what a configuration says, and name its activation."""
    config = model.config
    if config.model_type not in _FAMILIES:
        raise _refusal(f"model_type={config.model_type}", ", ".join(_FAMILIES))
    activation = getattr(config, "hidden_act", None) or config.activation
    if activation not in _ACTIVATIONS:
        raise _refusal(f"activation={activation}", ", ".join(_ACTIVATIONS))
    position = getattr(config, "position_embedding_type", "absolute")
    if position != "absolute":
        raise _refusal(f"position_embedding_type={position}", "absolute")
    for name in ("is_decoder", "add_cross_attention"):
        if getattr(config, name, False):
            raise _refusal(f"{name}=True", "an encoder")
    return _ACTIVATIONS[activation]


class _Collected:
    """The arrays of a file, and what it says of its linear layers."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.linears: dict[str, Any] = {}

    def linear(self, name: str, module: nn.Module) -> None:
        layer = _linear(name, module)
        self.arrays |= layer.arrays(name)
        self.linears[name] = layer.spec()

    def norm(self, name: str, module: nn.Module) -> None:
        if not isinstance(module, nn.LayerNorm):
            raise _refusal(f"{name}={type(module).__name__}", "LayerNorm")
        self.arrays[f"{name}.gain"] = _array(module.weight)
        self.arrays[f"{name}.bias"] = _array(module.bias)

    def tables(self, embeddings: nn.Module) -> dict[str, float | None]:
        """Add the embeddings; return their scales, None for floats."""
        width = embeddings.word_embeddings.embedding_dim
        modules = {
            "words": embeddings.word_embeddings,
            "types": getattr(embeddings, "token_type_embeddings", None),
            "positions": embeddings.position_embeddings,
        }
        scales: dict[str, float | None] = dict.fromkeys(TABLES)
        for name, module in modules.items():
            if module is None:  # DistilBERT has no token types
                self.arrays[f"tables.{name}"] = np.zeros((1, width), np.float32)
                continue
            found = _ready(module).get("weight")
            if found is None:
                self.arrays[f"tables.{name}"] = _array(module.weight)
            else:
                scales[name] = float(found.scale)
                grid = to_grid(module.weight.detach(), found.scale)
                self.arrays[f"tables.{name}"] = grid.numpy()
        return scales


def _sizes(
    model: PreTrainedModel,
    layer: nn.Module,
    names: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    config = model.config
    pad = getattr(config, "pad_token_id", None) or 0
    return {
        "class": type(model).__name__,
        "family": config.model_type,
        "hidden": layer.get_submodule(names["query"]).in_features,
        "embedding": arrays["tables.words"].shape[1],
        "intermediate": layer.get_submodule(names["up"]).out_features,
        "heads": getattr(config, "num_attention_heads", None) or config.n_heads,
        "eps": float(model.base_model.embeddings.LayerNorm.eps),
        "vocab": len(arrays["tables.words"]),
        "types": len(arrays["tables.types"]),
        "positions": len(arrays["tables.positions"]),
        "position_offset": pad + 1 if config.model_type in _ROBERTA else 0,
        "pad": pad,
    }


def _outputs(
    model: PreTrainedModel, activation: str, found: _Collected
) -> list[dict[str, Any]]:
    """Describe what is computed from the last layer, and add its layers."""
    if hasattr(model, "embeds"):
        return [_embedding(model.embeds.pooling)]
    first, names, modules = _head(model)
    steps = []
    for name, activated in modules:
        module = model.get_submodule(name)
        if activated == "norm":
            found.norm(name, module)
            steps.append(["norm", name])
            continue
        found.linear(name, module)
        if activated == "head":
            activated = "act" if model.config.model_type == "electra" else "tanh"
        if activated == "act":
            activated = activation if model.config.model_type in _OWN_ACT else "gelu"
        steps.append(["linear", name, activated])
    if names:
        return [{"names": names, "first": first, "steps": steps}]
    outputs = [{"names": ["last_hidden_state"], "first": False, "steps": []}]
    if steps:
        outputs.append({"names": ["pooler_output"], "first": True, "steps": steps})
    return outputs


def _embedding(pooling: Pooling) -> dict[str, Any]:
    if pooling.modes not in (("mean",), ("cls",)):
        raise _refusal(f"pooling={'+'.join(pooling.modes)}", "mean or cls")
    first = pooling.modes == ("cls",)
    steps = [["mean"]] * (not first) + [["unit"]] * pooling.unit
    return {"names": [EMBEDDING], "first": first, "steps": steps}


def _refusal(what: str, expected: str) -> ValueError:
    return ValueError(
        f"{what} is not computed by the sparse engine; expected {expected}; write "
        "another format, such as --format onnx"
    )


def _ready(module: nn.Module) -> dict[str, Any]:
    """Return a module's quantizers that have a range."""
    quantizers = module.quantizers if isinstance(module, Quantized) else {}
    return {role: one for role, one in quantizers.items() if one.ready}


def _array(values: Tensor) -> np.ndarray:
    return values.detach().to(torch.float32).numpy().copy()


def _linear(name: str, module: nn.Module) -> Linear:
    if not isinstance(module, nn.Linear):
        raise _refusal(f"{name}={type(module).__name__}", "a linear layer")
    if module.in_features % 4:
        raise _refusal(f"{name}.in_features={module.in_features}", "a multiple of 4")
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias
    weight = module.weight.detach()
    ready = _ready(module)
    if {"weight", "input"} <= set(ready):
        grid = ready["input"]
        return from_dense(
            to_grid(weight, ready["weight"].scale).numpy(),
            _array(bias),
            _array(ready["weight"].scale),
            (float(grid.scale), int(grid.zero_point)),
        )
    if "weight" in ready:
        weight = ready["weight"](weight, False)
    return from_dense(_array(weight), _array(bias))


def _grids(module: nn.Module) -> dict[str, tuple[float, int]] | None:
    """Return the grids of attention's products, None where any is missing."""
    found = _ready(module)
    if len(found) < 4:
        return None
    grids = {r: (float(one.scale), int(one.zero_point)) for r, one in found.items()}
    if grids["probabilities"][1]:
        raise _refusal("probabilities with a zero point", "0")
    return grids


def _head(
    model: PreTrainedModel,
) -> tuple[bool, tuple[str, ...], list[tuple[str, str]]]:
    """Return the modules behind the last layer, with their activations."""
    kind = type(model).__name__
    modules = dict(model.named_modules())
    if model is model.base_model:
        pooled = [("pooler.dense", "tanh")] if "pooler.dense" in modules else []
        return False, (), pooled
    for ending, (first, outputs, steps) in _HEADS.items():
        if not kind.endswith(ending):
            continue
        found = []
        for names, activation in steps:
            name = next((n for n in names if n in modules), None)
            if name is not None:
                found.append((name, activation))
        return first, outputs, found
    raise _refusal(
        f"class={kind}",
        "a base model, or one " + ", ".join(_HEADS).replace("For", "for "),
    )
