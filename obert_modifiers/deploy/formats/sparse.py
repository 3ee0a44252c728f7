"""Models for our own engine: the kept blocks, INT8 where the run has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from obert_modifiers.core.embedding_folder import is_sentence_folder, read_folder
from obert_modifiers.deploy.checks import compare
from obert_modifiers.deploy.formats.format import (
    Exported,
    Format,
    Options,
    check_int8,
)
from obert_modifiers.deploy.formats.sparse_model import describe
from obert_modifiers.deploy.run import load_run
from obert_modifiers.deploy.run_folder import copy_along
from obert_modifiers.deploy.weight import Weight
from obert_modifiers.runtime import file
from obert_modifiers.runtime.weights import Linear


class Sparse(Format):
    """One file of kept blocks, with the configuration and the tokenizer beside it."""

    name, pattern = "sparse", file.FILE_NAME
    takes = frozenset({"int8"})
    is_graph = True

    def write(self, run: Path, out: Path, options: Options) -> Exported:
        loaded = load_run(run)
        check_int8(options, run, loaded.quantized)
        spec, arrays = describe(loaded.model)
        spec["texts"] = _texts(run, loaded.model.config.hidden_size)
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


def _texts(run: Path, width: int) -> dict[str, Any]:
    """Say what sentence-transformers does to texts before their embeddings."""
    if not is_sentence_folder(run):
        return {}
    told = read_folder(run, width)
    return {"length": told.max_length, "lower": told.lower, "prompt": told.prompt()}


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
