"""Models for our own engine: the kept blocks, INT8 where the run has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from obert_modifiers.core.quantization.layers import Quantized
from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.formats.format import (
    Exported,
    Format,
    Options,
    check_int8,
)
from obert_modifiers.deploy.grid import to_grid
from obert_modifiers.deploy.run import load_run
from obert_modifiers.deploy.run_folder import copy_along
from obert_modifiers.deploy.weight import Weight
from obert_modifiers.runtime import file
from obert_modifiers.runtime.model import TABLES
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
# activation behind it ("act" for the configuration's); a layer normalisation has none.
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


class Sparse(Format):
    """One file of kept blocks, with the configuration and the tokenizer beside it."""

    name, pattern = "sparse", file.FILE_NAME
    takes = frozenset({"int8"})
    is_graph = True

    def write(self, run: Path, out: Path, options: Options) -> Exported:
        loaded = load_run(run)
        check_int8(options, run, loaded.quantized)
        spec, arrays = describe(loaded.model)
        copy_along(run, out)
        loaded.tokenizer.save_pretrained(out)  # tokenizer.json, also of slow ones
        path = out / file.FILE_NAME
        file.write(path, spec, arrays)
        facts = _facts(spec, arrays)
        fix = "report this model's class"
        try:
            told = compare(
                loaded.model, loaded.sample(), path, "sparse", loaded.quantized, fix
            )
        except BaseException:
            path.unlink()
            raise
        return Exported(path, path.stat().st_size, (*facts, told))

    def weights(self, files: Sequence[Path]) -> list[Weight]:
        spec, arrays = file.read(files[0])
        found = []
        for name, array in arrays.items():
            base, _, part = name.rpartition(".")
            if part in ("scale", "blocks", "counts"):
                continue
            count, prunable = array.size, False
            if part == "values":
                layer = Linear.read(base, spec["linears"][base], arrays)
                count, prunable = layer.rows * layer.columns, name.startswith("layers.")
            found.append(Weight(name, count, int(np.count_nonzero(array)), prunable))
        return found


def describe(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Collect what the engine needs of a model.

    Raises:
        ValueError: If its family, head, activation or attention is not one of those
            that the engine computes; it is named.
    """
    config = model.config
    kind = type(model).__name__
    if config.model_type not in _FAMILIES:
        raise _refusal(f"model_type={config.model_type}", ", ".join(_FAMILIES))
    activation = getattr(config, "hidden_act", None) or config.activation
    if activation not in _ACTIVATIONS:
        raise _refusal(f"activation={activation}", ", ".join(_ACTIVATIONS))
    position = getattr(config, "position_embedding_type", "absolute")
    if position != "absolute" or getattr(config, "sinusoidal_pos_embds", False):
        position = position if position != "absolute" else "sinusoidal"
        if position != "sinusoidal":  # sinusoidal ones are a table like any other
            raise _refusal(f"position_embedding_type={position}", "absolute")
    if getattr(config, "is_decoder", False) or getattr(
        config, "add_cross_attention", False
    ):
        raise _refusal("is_decoder=True", "an encoder")
    base = model.base_model
    where, names = _FAMILIES[config.model_type]
    layers = list(base.get_submodule(where))
    arrays: dict[str, np.ndarray] = {}
    linears: dict[str, Any] = {}

    def add(name: str, module: nn.Module) -> None:
        layer = _linear(name, module)
        arrays.update(layer.arrays(name))
        linears[name] = layer.spec()

    def add_norm(name: str, module: nn.Module) -> None:
        if not isinstance(module, nn.LayerNorm):
            raise _refusal(f"{name}={type(module).__name__}", "LayerNorm")
        arrays[f"{name}.gain"] = _array(module.weight)
        arrays[f"{name}.bias"] = _array(module.bias)

    scales = _tables(base, arrays)
    add_norm("embedding_norm", base.embeddings.LayerNorm)
    if hasattr(base, "embeddings_project"):
        add("project", base.embeddings_project)
    attention = []
    for i, layer in enumerate(layers):
        for part in ("query", "key", "value", "output", "up", "down"):
            add(f"layers.{i}.{part}", layer.get_submodule(names[part]))
        for part in ("norm0", "norm1"):
            add_norm(f"layers.{i}.{part}", layer.get_submodule(names[part]))
        attention.append(_grids(layer.get_submodule(names["products"])))
    first, outputs, steps = _head(model, kind)
    named = []
    for name, activated in steps:
        module = model.get_submodule(name)
        if activated == "norm":
            add_norm(name, module)
            named.append(["norm", name])
            continue
        add(name, module)
        if activated in ("act", "head"):
            gelu = activated == "act" or config.model_type == "electra"
            activated = "tanh" if not gelu else _ACTIVATIONS[activation]
        named.append(["linear", name, activated])
    hidden_outputs = []
    if outputs:
        hidden_outputs = [{"names": outputs, "first": first, "steps": named}]
    else:
        hidden_outputs.append({
            "names": ["last_hidden_state"],
            "first": False,
            "steps": [],
        })
        if named:
            hidden_outputs.append({
                "names": ["pooler_output"],
                "first": True,
                "steps": named,
            })
    hidden = layers[0].get_submodule(names["query"]).in_features
    roberta = config.model_type in ("roberta", "xlm-roberta", "camembert")
    pad = getattr(config, "pad_token_id", None) or 0
    about = {
        "class": kind,
        "family": config.model_type,
        "hidden": hidden,
        "embedding": arrays["tables.words"].shape[1],
        "intermediate": layers[0].get_submodule(names["up"]).out_features,
        "heads": getattr(config, "num_attention_heads", None) or config.n_heads,
        "layers": len(layers),
        "activation": _ACTIVATIONS[activation],
        "eps": float(base.embeddings.LayerNorm.eps),
        "vocab": len(arrays["tables.words"]),
        "types": len(arrays["tables.types"]),
        "positions": len(arrays["tables.positions"]),
        "position_offset": pad + 1 if roberta else 0,
        "pad": pad,
    }
    spec = {
        "model": about,
        "linears": linears,
        "attention": attention,
        "outputs": hidden_outputs,
        "tables": scales,
    }
    return spec, arrays


def _refusal(what: str, expected: str) -> ValueError:
    return ValueError(
        f"{what} is not computed by the sparse engine; expected {expected}; write "
        "another format, such as --format onnx"
    )


def _array(values: Tensor) -> np.ndarray:
    return values.detach().to(torch.float32).numpy().copy()


def _linear(name: str, module: nn.Module) -> Linear:
    if not isinstance(module, nn.Linear):
        raise _refusal(f"{name}={type(module).__name__}", "a linear layer")
    if module.in_features % 4:
        raise _refusal(f"{name}.in_features={module.in_features}", "a multiple of 4")
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias
    weight = module.weight.detach()
    quantizers = module.quantizers if isinstance(module, Quantized) else {}
    ready = {role: one for role, one in quantizers.items() if one.ready}
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


def _tables(base: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Collect the embeddings and their scales."""
    embeddings = base.embeddings
    width = embeddings.word_embeddings.embedding_dim
    modules = {
        "words": embeddings.word_embeddings,
        "types": getattr(embeddings, "token_type_embeddings", None),
        "positions": embeddings.position_embeddings,
    }
    scales: dict[str, float | None] = {}
    for name in TABLES:
        module = modules[name]
        scales[name] = None
        if module is None:  # DistilBERT has no token types
            arrays[f"tables.{name}"] = np.zeros((1, width), np.float32)
            continue
        weight = module.weight.detach()
        found = module.quantizers["weight"] if isinstance(module, Quantized) else None
        if found is not None and found.ready:
            scales[name] = float(found.scale)
            arrays[f"tables.{name}"] = to_grid(weight, found.scale).numpy()
        else:
            arrays[f"tables.{name}"] = _array(weight)
    return scales


def _grids(module: nn.Module) -> dict[str, tuple[float, int]] | None:
    """Return the grids of attention's products, None where any is missing."""
    found = module.quantizers if isinstance(module, Quantized) else {}
    if not found or not all(one.ready for one in found.values()):
        return None
    grids = {r: (float(one.scale), int(one.zero_point)) for r, one in found.items()}
    if grids["probabilities"][1]:
        raise _refusal("probabilities with a zero point", "0")
    return grids


def _head(
    model: PreTrainedModel, kind: str
) -> tuple[bool, tuple[str, ...], list[tuple[str, str]]]:
    """Return the modules behind the last layer, with their activations."""
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


def _facts(spec: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Say what a user wants to know of a file."""
    int8 = [name for name, one in spec["linears"].items() if one["grid"] is not None]
    count = len(spec["linears"])
    facts = [f"{len(int8)} of {count} linear layers in INT8"]
    stored = kept = 0
    for name in spec["linears"]:
        values = arrays[f"{name}.values"]
        stored, kept = stored + values.size, kept + int(np.count_nonzero(values))
    waste = stored / max(kept, 1)
    if waste > 1.05:
        facts.append(
            f"weights are stored in blocks of 4 with {waste - 1:.0%} zeros among them; "
            "mask_type: block4 in the recipe has none"
        )
    return facts


FORMAT = Sparse()
