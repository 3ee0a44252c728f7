"""Small models of every family and head, dense, pruned and quantized."""

from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from obert_modifiers.core.quantization.scheme import Scheme, freeze_, quantize_
from obert_modifiers.deploy.formats.sparse_model import describe
from obert_modifiers.runtime import file

VOCAB, PAD = 120, 1
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 88,
    "max_position_embeddings": 80,
    "pad_token_id": PAD,
    "num_labels": 3,
}
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 88,
    "max_position_embeddings": 80,
    "pad_token_id": PAD,
}
HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMaskedLM",
)
FAMILIES = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "Electra": BERT | {"embedding_size": 24},
    "DistilBert": DISTILBERT,
}
CLASSES = {
    f"{family}{head}": (family, head)
    for family in FAMILIES
    for head in (*HEADS, "Model")
}
SCHEMES = {
    "float": None,
    "int8": Scheme(),
    "int8 attention": Scheme(
        attention_matmuls=True, per_channel=True, reduce_range=False
    ),
    "int8 in part": Scheme(
        ignore=(r"re:.*(key|k_lin|LayerNorm|output\.dense|lin2)$",), embeddings=False
    ),
}


def make(family: str, head: str, **changes) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family] | changes)
    model = getattr(transformers, f"{family}{head}")(config)
    for module in model.modules():  # as far apart as those of a trained model
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.15)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@torch.no_grad()
def prune_(model: PreTrainedModel, group: int, kept: float = 0.3) -> None:
    for name, weight in model.named_parameters():
        if "layer." in name and weight.ndim == 2:
            mask = torch.rand(weight.numel() // group, 1) < kept
            weight.copy_((weight.reshape(-1, group) * mask).view_as(weight))


def batch(lengths: list[int], types: bool = True) -> dict[str, torch.Tensor]:
    width = max(lengths)
    ids = torch.randint(5, VOCAB, (len(lengths), width))
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    found = {
        "input_ids": torch.where(mask, ids, PAD),
        "attention_mask": mask.long(),
    }
    if types:
        found["token_type_ids"] = (torch.arange(width) % 2).expand_as(ids) * mask
    return found


def quantized_(model: PreTrainedModel, scheme: Scheme | None, given: dict) -> None:
    if scheme is not None:
        quantize_(model, scheme)
        model.train()
        with torch.no_grad():
            model(**given)
        freeze_(model.eval())


def write(model: PreTrainedModel, path: Path) -> Path:
    file.write(path, *describe(model))
    return path
