"""The small models that are exported, and an exported file beside its model."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizerFast,
)

from obert_modifiers.core.quantization.scales import save_quantization
from obert_modifiers.core.quantization.scheme import Scheme, freeze_, quantize_
from obert_modifiers.deploy.onnx import OnnxExport, export_onnx
from tests import tiny

OUTPUTS = {
    BertForSequenceClassification: ("logits",),
    BertForTokenClassification: ("logits",),
    BertForMaskedLM: ("logits",),
    BertForQuestionAnswering: ("start_logits", "end_logits"),
}
SCHEMES = {
    "plain": None,
    "per tensor": Scheme(),
    "per channel": Scheme(per_channel=True),
    "products too": Scheme(per_channel=True, attention_matmuls=True),
    "full range": Scheme(reduce_range=False),
}
assert (len(OUTPUTS), len(SCHEMES)) == (4, 5)
# Integer kernels sum exactly and torch in float32. All outputs agree to rounding but
# those behind an activation that this lifts over the border of its step; such a row is
# off by the weight of one step of one input, below 1 % of the largest output here.
SAME, FEW_STEPS = 1e-5, 2e-2
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def make(cls=BertForSequenceClassification, scheme=None, kind="sdpa", **config):
    """A model of two layers, quantized after three batches."""
    torch.manual_seed(0)
    config = BertConfig(**SHAPE | {"max_position_embeddings": 24} | config)
    model = cls._from_config(config, attn_implementation=kind)
    if scheme is not None:
        quantized_(model, scheme, *(inputs(4, 11, seed) for seed in range(3)))
    return model.eval()


def moving_(model, scheme: Scheme, *batches):
    """Quantize a model with the ranges of some batches, which still move."""
    quantize_(model, scheme)
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    return model.eval()


def quantized_(model, scheme: Scheme, *batches):
    """Quantize a model with the ranges of some batches."""
    moving_(model, scheme, *batches).train()
    freeze_(model)
    return model.eval()


def inputs(rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, tokens // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def export(model, folder: Path, *args, **options) -> OnnxExport:
    """Export a model from a sample of two rows and six tokens."""
    return export_onnx(model, inputs(2, 6), folder / "model.onnx", *args, **options)


def kinds_of(path) -> Counter:
    """Count the nodes of a file by their operator."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def arrays_of(path) -> dict[str, np.ndarray]:
    """Return the initializers of a file."""
    graph = onnx.load(path).graph
    return {one.name: numpy_helper.to_array(one) for one in graph.initializer}


def sizes_of(value: onnx.ValueInfoProto) -> list[int | str]:
    """Return the sizes of a graph's input or output."""
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_param or axis.dim_value for axis in axes]


def plain_session(path):
    """Open a file as a user's program does, with no option set."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, batch, session=plain_session) -> list[np.ndarray]:
    return session(path).run(None, numpy_of(batch))


def numpy_of(batch) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in batch.items()}


def agrees(model, found, batch, exactly: bool = False, session=plain_session) -> bool:
    """Tell whether nine of ten outputs are the same, and none is far off.

    The same as torch's in float32 or in float64: on one CPU or another float32 lifts an
    activation over the border of its step, and then the engine is with float64.
    """
    ours = dict(zip(found.outputs, run(found.path, batch, session), strict=True))
    with torch.no_grad():
        references = [model(**batch)]
        if not exactly:
            references.append(model.double()(**batch))
            model.float()
    return any(_same(ours, one, exactly) for one in references)


def _same(ours, expected, exactly: bool) -> bool:
    for name, one in ours.items():
        right = expected[name].numpy()
        away = np.abs(one - right) / np.abs(right).max()
        same = (away < SAME).mean()
        if away.max() > FEW_STEPS or same < (1.0 if exactly else 0.9):
            return False
    return True


def farthest(ours, expected) -> float:
    """Return how far arrays are from others, in shares of the largest of these."""
    pairs = zip(map(np.asarray, ours), map(np.asarray, expected), strict=True)
    return max(np.abs(one - right).max() / np.abs(right).max() for one, right in pairs)


def prune_24(weight: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Zero two or more of every four, at random."""
    generator = torch.Generator().manual_seed(seed)
    fours = weight.reshape(-1, 4).clone()
    places = torch.rand(fours.shape, generator=generator).argsort(dim=1)
    fours.scatter_(1, places[:, :2], 0.0)
    lone = torch.rand(len(fours), generator=generator) < 0.2
    fours[lone] = fours[lone].scatter(1, places[lone, 2:3], 0.0)
    return fours.reshape(weight.shape)


def pruned_(model, prune=prune_24):
    """Prune the matrices of a model's encoder."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "encoder" in name and weight.ndim == 2:
                weight.copy_(prune(weight))
    return model


def save_pruned(folder: Path, prune=prune_24, **config) -> Path:
    """Save a run with a pruned encoder, whose matrices fit sparse tensor cores."""
    tiny.save_model(folder, **{"hidden_size": 64, "intermediate_size": 128} | config)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    pruned_(model, prune).save_pretrained(folder)
    return folder


def save_quantized(model, folder: Path) -> Path:
    """Save a quantized model as a run."""
    model.save_pretrained(folder)
    save_quantization(model, folder)
    return folder


def save(folder: Path, scheme: Scheme | None) -> Path:
    """Save the model of `make` as a run, with its tokenizer."""
    model = make(scheme=scheme, vocab_size=max(40, len(tiny.WORDS)))
    save_quantized(model, folder)
    words = folder / "vocab.txt"
    words.write_text("\n".join(tiny.WORDS), encoding="utf-8")
    BertTokenizerFast(vocab_file=str(words)).save_pretrained(folder)
    return folder


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
