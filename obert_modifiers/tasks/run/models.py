"""The model and its tokenizer."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.pre_tokenizers import Sequence as Sequential
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers import PreTrainedConfig as Config
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

from obert_modifiers import embedded
from obert_modifiers.core.outputs import MULTI_LABEL
from obert_modifiers.core.positions import usable_length
from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.core.saved import check_all_saved
from obert_modifiers.modifiers._targets import encoder_weights, match_names
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.tasks.data.labels import Labels
from obert_modifiers.tasks.flags import ModelArguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model before it is loaded: where it is and what it is."""

    source: str  # the folder or hub id of the weights
    config: Config
    tokenizer: Tokenizer
    description: str  # what it is called in the log
    args: ModelArguments = field(default_factory=ModelArguments)  # that named it

    def classes(self, head: str) -> dict[str, int]:
        """Return the classes that it was trained with; none if with another head."""
        trained = self.config.architectures or []
        if not any(name.endswith(head) for name in trained):
            return {}
        return {str(name): int(i) for name, i in self.config.label2id.items()}

    def labels(self, head: str, column: str | None) -> Labels:
        """Return what the model was trained to tell, where the data does not say it."""
        known = self.classes(head)
        if not known:
            heads = ", ".join(self.config.architectures or []) or "no head"
            raise ValueError(
                f"model={self.description} has {heads}, and test data names no "
                "classes; expected a model trained for this task; train it first"
            )
        names = tuple(sorted(known, key=lambda name: known[name]))
        multi = getattr(self.config, "problem_type", None) == MULTI_LABEL
        if len(names) == 1 and not multi:
            return Labels(column or "", {}, ())
        return Labels(column or "", known, names, multi)

    def max_length(self, asked: int) -> int:
        """Return the length that is asked for, or the longest that works."""
        most = min(asked, self.tokenizer.model_max_length)
        return min(most, self._positions or most)

    @cached_property
    def _positions(self) -> int | None:
        with torch.device("meta"):
            return usable_length(AutoModel.from_config(self.config))


def find(args: ModelArguments, *, words: bool = False) -> Pretrained:
    """Find the model that the flags name; without any, the embedded encoder.

    Its tokenizer puts a space before each of `words`, if that is how it tells them.
    """
    source = description = args.model_name_or_path
    if source is None:
        source = str(embedded.encoder_path())
        description = f"the embedded {embedded.ENCODER_NAME}"
    config = fetch(AutoConfig, "--config_name", args.config_name or source, args)
    named = ("--tokenizer_name", args.tokenizer_name or source, args)
    tokenizer = fetch(AutoTokenizer, *named)
    if words and _byte_levels(tokenizer):
        # RoBERTa's class keeps the option when it is saved, others their parts.
        tokenizer = fetch(AutoTokenizer, *named, add_prefix_space=True)
        for part in _byte_levels(tokenizer):
            part.add_prefix_space = True
    flag = "--tokenizer_name" if args.tokenizer_name else "--model_name_or_path"
    check_vocabulary(config, tokenizer, f"{flag}={named[1]}")
    return Pretrained(source, config, tokenizer, str(description), args)


def check_fixed_length(pretrained: Pretrained, length: int, padded: bool) -> None:
    """Check the samples of a model that reads only one length, as Nyströmformer may."""
    only = getattr(pretrained.config, "segment_means_seq_len", None)
    # Where a landmark is a token, there are none, and any length is right.
    free = only is None or only == pretrained.config.num_landmarks
    if not free and not (padded and length == only):
        raise ValueError(
            f"model={pretrained.description} reads segment_means_seq_len={only} tokens "
            "at once; expected samples of that length; give --max_seq_length "
            f"{only} --pad_to_max_length"
        )


def check_vocabulary(config: Config, tokenizer: Tokenizer, named: str) -> None:
    """Check that the model has an embedding for each token of a tokenizer."""
    rows = getattr(config, "vocab_size", None)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and highest >= rows:
        raise ValueError(
            f"{named} has tokens with numbers up to {highest} and the model embeddings "
            f"for {rows}; expected numbers below that; take the model's own tokenizer"
        )


def _byte_levels(tokenizer: Tokenizer) -> list[ByteLevel]:
    """Find the parts of a tokenizer whose tokens hold the space before a word."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = getattr(backend, "pre_tokenizer", None)
    parts = parts if isinstance(parts, Sequential) else [parts]
    return [part for part in parts if isinstance(part, ByteLevel)]


def load_student(
    pretrained: Pretrained,
    model_class: Any,
    labels: Labels | None,
    args: ModelArguments,
    seed: int,
) -> Model:
    """Load the model in float32; the seed fixes the numbers in a new head."""
    config = pretrained.config
    if labels is not None:
        config.num_labels = labels.num_labels
        config.problem_type = labels.problem_type
    if labels is not None and labels.regression:
        keep_numbers(config)
    if labels is not None and labels.names:
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: number for number, name in enumerate(labels.names)}
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= {"config": config, "dtype": torch.float32}
    named = "--model_name_or_path", pretrained.source
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, report = fetch(model_class, *named, args, **options)
    mismatched = (key[0] for key in report["mismatched_keys"])
    new = sorted({*report["missing_keys"], *mismatched})
    if new:
        logger.info("new weights, from seed %d: %s", seed, ", ".join(new))
    return model


def keep_numbers(config: Config) -> None:
    """Have sentence-transformers' CrossEncoder give a number as it is, not its sigmoid.

    A model that says itself what is done with its number goes on saying so.
    """
    said = ("sentence_transformers", "sbert_ce_default_activation_function")
    if not any(getattr(config, name, None) for name in said):
        config.sentence_transformers = {
            "activation_fn": "torch.nn.modules.linear.Identity"
        }


def load_saved(folder: Path, model_class: Any) -> Model:
    """Load a model that this package saved, in float32, on its 8-bit grids if any."""
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    # An encoder's own pooler is not read.
    lost = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    fix = "train the model on this task first"
    check_all_saved(model, lost, f"model={folder}", fix)
    load_quantization_(model, folder)
    return model


def prunable_names(model: nn.Module, manager: RecipeManager | None) -> list[str]:
    """Name what the recipe prunes in the model's order, else the encoder's weights."""
    chosen: set[str] = set()
    for modifier in manager.pruning if manager else []:
        chosen |= set(_targets_of(modifier, model))
    if not chosen:
        return encoder_weights(model)
    return [name for name, _ in model.named_parameters() if name in chosen]


def _targets_of(modifier: Any, model: nn.Module) -> Sequence[str]:
    if hasattr(modifier, "resolve_targets"):
        return modifier.resolve_targets(model)
    params = getattr(modifier, "params", None) or []
    return match_names(model, [params] if isinstance(params, str) else list(params))


def fetch(kind: Any, flag: str, name: str, args: ModelArguments, **options: Any) -> Any:
    """Load what a name stands for; `flag` gave the name, for errors."""
    flag = "--model_name_or_path" if name == args.model_name_or_path else flag
    if name.startswith("zoo:"):
        raise ValueError(
            f"{flag}={name} is a SparseZoo stub, and the SparseZoo is closed; expected "
            "a folder or hub id; download the model and give its local path"
        )
    local = Path(name).exists()
    if not local:
        logger.info("asking the hub for %s", name)
    try:
        return kind.from_pretrained(
            name, cache_dir=args.cache_dir, revision=args.model_revision, **options
        )
    except (OSError, ValueError) as error:
        missing = "is no folder here, and the hub did not give it"
        why = "cannot be loaded" if local else missing
        raise ValueError(
            f"{flag}={name} {why} ({str(error).splitlines()[0][:200]}); expected a "
            "folder with config.json, weights and tokenizer, or a hub id and a network;"
            " give a local folder"
        ) from error
