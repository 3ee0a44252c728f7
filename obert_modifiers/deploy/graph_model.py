"""Graphs as modules: tensors by name in and out, whichever engine computes them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from obert_modifiers.deploy.engines import ENGINES
from obert_modifiers.deploy.engines.engine import Opened
from obert_modifiers.deploy.samples import IDS, TYPES

_OF_TOKENS = ("start_logits", "end_logits")  # one number for each token


class GraphModel(nn.Module):
    """A graph over tokens that an engine computes, on a CPU; has no parameters."""

    def __init__(self, path: Path, opened: Opened) -> None:
        """Check that it takes tokens; `path` is for errors."""
        super().__init__()
        self.inputs, self.outputs = dict(opened.inputs), opened.outputs
        self._path, self._compute = path, opened.compute
        if IDS not in self.inputs:
            raise ValueError(
                f"model={path} takes {', '.join(self.inputs) or 'nothing'}; expected "
                "input_ids and attention_mask, as a text model does; export the model "
                "with `obert export`"
            )

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Batch size and sequence length, None where they are free."""
        return (*self.inputs[IDS], None, None)[:2]

    def forward(self, **values: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of ``(batch, sequence)`` inputs.

        A graph of fixed sizes gets them filled with padding, in as many parts as it
        takes; the outputs are those of the rows and tokens that were given.
        """
        rows, tokens = values[IDS].shape
        fixed_rows, fixed_tokens = self.sizes
        if fixed_tokens is not None and tokens > fixed_tokens:
            raise ValueError(
                f"model={self._path} takes sequences of {fixed_tokens} tokens, and a "
                f"sample has {tokens}; expected no more; give --max_seq_length "
                f"{fixed_tokens}"
            )
        step = fixed_rows or rows
        whole = -(-rows // step) * step
        padding = ((0, whole - rows), (0, (fixed_tokens or tokens) - tokens))
        arrays = {
            name: np.pad(self._value(name, values).cpu().numpy(), padding)
            for name in self.inputs
        }
        parts = [
            self._compute({name: one[i : i + step] for name, one in arrays.items()})
            for i in range(0, whole, step)
        ]
        found = {}
        for name in self.outputs:
            output = np.concatenate([part[name] for part in parts])[:rows]
            if fixed_tokens is not None and _has_tokens(name, output, fixed_tokens):
                output = output[:, :tokens]
            found[name] = torch.from_numpy(np.ascontiguousarray(output))
        return {name: one.to(values[IDS].device) for name, one in found.items()}

    def _value(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        if name in values:
            return values[name]
        if name == TYPES:  # zeros where a tokenizer does not give them
            return torch.zeros_like(values[IDS])
        raise ValueError(
            f"model={self._path} takes {name}, and the tokenizer gives "
            f"{', '.join(values)}; expected the tokenizer of this model; give its run "
            "with --run"
        )


def _has_tokens(name: str, output: np.ndarray, tokens: int) -> bool:
    """Tell whether an output's second axis is that of the tokens.

    Classes or the width of an embedding, ``(batch, n)``, may be as many as they are.
    """
    return output.shape[1:2] == (tokens,) and (output.ndim > 2 or name in _OF_TOKENS)


def open_graph(path: Path, engine: str) -> GraphModel:
    """Open an ``.onnx`` file, or for OpenVINO an ``.xml`` file, in an engine."""
    if path.suffix == ".onnx":
        from obert_modifiers.deploy.onnx.file import load_onnx

        load_onnx(path)  # whose errors are for users
    return GraphModel(path, ENGINES[engine].open(path))
