"""Tell models apart by their weights."""

import hashlib

import torch
from torch import nn


def digest_of(model: nn.Module) -> str:
    """Hash a model's parameters and buffers, with their names, dtypes and shapes.

    Args:
        model: Any model.

    Returns:
        SHA-256 in hexadecimal digits; equal for models with equal bits.
    """
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        flat = values.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
