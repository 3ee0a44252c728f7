"""A run's folder as a model that can be exported, and the sample that traces it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from obert_modifiers.core.embedding_folder import embed_as_saved_
from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.core.saved import check_all_saved
from obert_modifiers.deploy.engines.engine import reason
from obert_modifiers.deploy.run_folder import check_run


@dataclass(frozen=True)
class Run:
    """A saved model."""

    path: Path
    # The model in float32, in eval mode, on 8-bit grids where it was saved with them.
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantized: bool  # whether it went through quantization-aware training

    def sample(self) -> dict[str, Tensor]:
        """Return a batch of one sentence, as the tokenizer makes it."""
        texts = ["a sentence that is exported"]
        return dict(self.tokenizer(texts, return_tensors="pt"))


def load_run(path: Path) -> Run:
    """Load what a run saved, in the class that it was trained in."""
    check_run(path)
    try:
        text = (path / "config.json").read_text(encoding="utf-8")
        names = json.loads(text).get("architectures")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"run={path} has a config.json that cannot be read ({error}); expected "
            "what save_pretrained writes; save the model again"
        ) from error
    name = (names or ["none"])[0]
    model_class = getattr(transformers, name, None)
    if model_class is None or not hasattr(model_class, "from_pretrained"):
        raise ValueError(
            f"run={path} holds a model of class {name}, which transformers does not "
            "have; expected one like BertForSequenceClassification; save the model "
            "with save_pretrained"
        )
    hub = transformers.utils.logging
    bars = hub.is_progress_bar_enabled()
    hub.disable_progress_bar()
    try:
        model, report = model_class.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"run={path} cannot be loaded ({reason(error)}); expected config.json, "
            "weights and tokenizer; train or save it again"
        ) from error
    finally:
        if bars:
            hub.enable_progress_bar()
    _leave_out_unsaved_(model.eval(), {*report["missing_keys"]}, path)
    if model is model.base_model:
        embed_as_saved_(model, path)
    return Run(path, model, tokenizer, load_quantization_(model, path))


def _leave_out_unsaved_(model: PreTrainedModel, missing: set[str], path: Path) -> None:
    """Take away a pooler that was not saved; any other such weight is an error."""
    if model is model.base_model:
        pooler = {name for name in missing if name.startswith("pooler.")}
        if pooler:
            model.pooler = None
            missing = missing - pooler
    fix = "train the model, or save it whole"
    check_all_saved(model, missing, f"run={path}", fix)
