"""The model, its tokenizer and its teacher."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.pre_tokenizers import Sequence as Sequential
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from obert_modifiers import embedded
from obert_modifiers.core.outputs import MULTI_LABEL
from obert_modifiers.core.positions import usable_length
from obert_modifiers.core.quantization.scales import load_quantization_
from obert_modifiers.modifiers._classes import class_names, order_for
from obert_modifiers.modifiers._targets import encoder_weights, match_names
from obert_modifiers.recipe.manager import RecipeManager
from obert_modifiers.tasks import _teacher_inputs
from obert_modifiers.tasks._arguments import ModelArguments
from obert_modifiers.tasks._data import Labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model before it is loaded: where it is and what it is.

    Attributes:
        source: The folder or hub id of the weights.
        config: Its configuration.
        tokenizer: Its tokenizer.
        description: What it is called in the log.
    """

    source: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    description: str

    def classes(self, model_class: Any) -> dict[str, int]:
        """Return the classes that the model was trained with.

        Args:
            model_class: The task's class of models, ``AutoModelFor...``.

        Returns:
            Class numbers by name, empty where the model was trained for another task.
        """
        head = model_class.__name__.removeprefix("AutoModel")
        trained = self.config.architectures or []
        if not any(name.endswith(head) for name in trained):
            return {}
        return {str(name): int(i) for name, i in self.config.label2id.items()}

    def labels(self, model_class: Any, column: str | None) -> Labels:
        """Return what the model was trained to tell, where the data does not say it.

        Args:
            model_class: The task's class of models, ``AutoModelFor...``.
            column: The column of the labels, if there were any.

        Returns:
            Its classes, or a number.

        Raises:
            ValueError: If it was trained for another task.
        """
        known = self.classes(model_class)
        if not known:
            heads = ", ".join(self.config.architectures or []) or "no head"
            raise ValueError(
                f"model={self.description} has {heads}, and test data alone names no "
                f"classes; expected a model trained for this task; train it first, or "
                "add --do_train with labelled data"
            )
        names = tuple(sorted(known, key=lambda name: known[name]))
        multi = getattr(self.config, "problem_type", None) == MULTI_LABEL
        if len(names) == 1 and not multi:
            return Labels(column or "", {}, ())
        return Labels(column or "", known, names, multi)

    def max_length(self, asked: int) -> int:
        """Cut a sequence length to what model and tokenizer can take.

        Args:
            asked: The length asked for.

        Returns:
            That length, or the longest that works.
        """
        most = min(asked, self.tokenizer.model_max_length)
        return min(most, self._positions or most)

    @cached_property
    def _positions(self) -> int | None:
        with torch.device("meta"):
            return usable_length(AutoModel.from_config(self.config))


def find(args: ModelArguments, *, words: bool = False) -> Pretrained:
    """Find the model that the flags name; without any, the embedded encoder.

    Args:
        args: The flags.
        words: True for texts that are lists of words: a tokenizer that tells a word's
            start by the space before it then puts one before each.

    Returns:
        The model, not loaded yet.

    Raises:
        ValueError: If there is no such folder and the hub does not give it either, or
            the tokenizer has tokens that the model does not know.
    """  # noqa: DOC502  raised by what is called
    source, description = args.model_name_or_path, args.model_name_or_path
    if source is None:
        source = str(embedded.encoder_path())
        description = f"the embedded {embedded.ENCODER_NAME}"
    config = _fetch(AutoConfig, "--config_name", args.config_name or source, args)
    named = ("--tokenizer_name", args.tokenizer_name or source, args)
    tokenizer = _fetch(AutoTokenizer, *named)
    if words and _byte_levels(tokenizer):
        # RoBERTa's class keeps the option when it is saved, others their parts.
        tokenizer = _fetch(AutoTokenizer, *named, add_prefix_space=True)
        for part in _byte_levels(tokenizer):
            part.add_prefix_space = True
    flag = "--tokenizer_name" if args.tokenizer_name else "--model_name_or_path"
    _check_vocabulary(config, tokenizer, f"{flag}={named[1]}")
    return Pretrained(source, config, tokenizer, str(description))


def check_fixed_length(found: Pretrained, length: int, padded: bool) -> None:
    """Check the samples of a model that reads one length alone, as Nyströmformer may.

    Args:
        found: The model.
        length: The most tokens of a sample.
        padded: Whether all samples are padded to that.

    Raises:
        ValueError: If it reads another length alone.
    """
    only = getattr(found.config, "segment_means_seq_len", None)
    # Where a landmark is a token, there are none, and any length is right.
    free = only is None or only == found.config.num_landmarks
    if not free and not (padded and length == only):
        raise ValueError(
            f"model={found.description} reads segment_means_seq_len={only} tokens at "
            f"once, no more and no fewer; expected samples of that length; give "
            f"--max_seq_length {only} --pad_to_max_length"
        )


def check_teachers_length(teacher: Any, length: int) -> None:
    """Check that a teacher reads the student's longest sample.

    Args:
        teacher: What `load_teacher` gave.
        length: Tokens of that sample.

    Raises:
        ValueError: If it has fewer positions.
    """
    most = usable_length(teacher) if isinstance(teacher, nn.Module) else None
    if most is not None and length > most:
        raise ValueError(
            f"teacher={teacher.config.name_or_path} reads {most} tokens at most and a "
            f"sample has {length}; expected no more; give --max_seq_length {most}"
        )


def _check_vocabulary(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, named: str
) -> None:
    """Check that the model has an embedding for each token.

    Args:
        config: The model's configuration.
        tokenizer: The tokenizer.
        named: The flag and where the tokenizer is, for the error.

    Raises:
        ValueError: If a token's number is beyond the model's embeddings.
    """
    rows = getattr(config, "vocab_size", None)
    highest = max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and highest >= rows:
        raise ValueError(
            f"{named} has tokens with numbers up to {highest} and the model embeddings "
            f"for {rows}; expected numbers below that; take the model's own tokenizer"
        )


def _byte_levels(tokenizer: PreTrainedTokenizerBase) -> list[ByteLevel]:
    """Find the parts of a tokenizer whose tokens hold the space before a word.

    Returns:
        The byte-level parts, none for most tokenizers.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = getattr(backend, "pre_tokenizer", None)
    parts = parts if isinstance(parts, Sequential) else [parts]
    return [part for part in parts if isinstance(part, ByteLevel)]


def load_student(
    found: Pretrained,
    model_class: Any,
    labels: Labels | None,
    args: ModelArguments,
    seed: int,
) -> PreTrainedModel:
    """Load the model with a head for the task, and for the data set's classes.

    Args:
        found: The model, from `find`.
        model_class: The task's class of models.
        labels: The classes; their names go into the model's configuration. None where
            the task has none.
        args: The flags.
        seed: Fixes the numbers in a new head; the caller's generator is left alone.

    Returns:
        The model in float32.
    """
    config = found.config
    if labels is not None:
        config.num_labels = labels.num_labels
        config.problem_type = labels.problem_type
    if labels is not None and labels.names:
        config.id2label = dict(enumerate(labels.names))
        config.label2id = {name: number for number, name in enumerate(labels.names)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, report = _fetch(
            model_class,
            "--model_name_or_path",
            found.source,
            args,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    new = sorted({
        *report["missing_keys"],
        *(key[0] for key in report["mismatched_keys"]),
    })
    if new:
        logger.info("new weights, from seed %d: %s", seed, ", ".join(new))
    return model


def load_teacher(
    found: Pretrained,
    model_class: Any,
    labels: Labels | None,
    args: ModelArguments,
    named: str | None = None,
) -> nn.Module | str | None:
    """Load the teacher that `distill_teacher` names, or else the recipe.

    Args:
        found: The student, whose tokens the teacher reads.
        model_class: The task's class of models.
        labels: The classes, which the teacher must have too; None where the task has
            none.
        args: The flags.
        named: The teacher that the recipe names, or None.

    Returns:
        The teacher in eval mode, or ``self``, ``disable`` or None as it was given.

    Raises:
        ValueError: If the teacher's classes or tokens are not the student's.
    """
    flag = "teacher" if args.distill_teacher is None else "--distill_teacher"
    name = named if args.distill_teacher is None else args.distill_teacher
    if name in (None, "self", "disable"):
        return name
    config = _fetch(AutoConfig, flag, name, args)
    tokenizer = _fetch(AutoTokenizer, flag, name, args)
    if tokenizer.get_vocab() != found.tokenizer.get_vocab():
        raise ValueError(
            f"{flag}={name} has another vocabulary than the model; expected the same "
            "tokens; take a teacher with the model's tokenizer"
        )
    if labels is not None:
        _check_classes(config, labels, f"{flag}={name}")
    _check_vocabulary(config, tokenizer, f"{flag}={name}")
    _teacher_inputs.check_tokens(found.tokenizer, tokenizer, f"{flag}={name}")
    teacher = _fetch(model_class, flag, name, args).float().eval()
    _teacher_inputs.prepare_(teacher, found.tokenizer, tokenizer, f"{flag}={name}")
    return teacher


def _check_classes(config: PreTrainedConfig, labels: Labels, named: str) -> None:
    """Check that a teacher has the data set's classes.

    Args:
        config: The teacher's configuration.
        labels: The classes.
        named: The flag and the teacher, for the error.

    Raises:
        ValueError: If it has others.
    """
    names = tuple(class_names(config))
    if config.num_labels != labels.num_labels:
        raise ValueError(
            f"{named} has the classes {', '.join(names)}; expected "
            f"{', '.join(labels.names) or 'one number'}; train it on this data set"
        )
    named_by_hand = not all(name.startswith("LABEL_") for name in names)
    # Names in another order are the distillation modifier's to bring into ours.
    if named_by_hand and labels.names and order_for(labels.names, names) is None:
        logger.warning(
            "%s calls its classes %s and the data set %s; they are taken in this order",
            named,
            ", ".join(names),
            ", ".join(labels.names),
        )


def load_saved(folder: Path, model_class: Any) -> PreTrainedModel:
    """Load a model that this package saved.

    Args:
        folder: Its folder.
        model_class: The task's class of models.

    Returns:
        The model in float32, with its weights and activations on 8-bit grids where it
        was saved with them.
    """
    model = model_class.from_pretrained(folder, dtype=torch.float32)
    load_quantization_(model, folder)
    return model


def prunable_names(model: nn.Module, manager: RecipeManager | None) -> list[str]:
    """Name the parameters whose sparsity a run reports.

    Args:
        model: The model, not wrapped.
        manager: The recipe's, or None.

    Returns:
        What the recipe's pruning modifiers prune; without any, the linear weights of
        the encoder's layers. In the order of the model.
    """
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


def _fetch(
    kind: Any, flag: str, name: str, args: ModelArguments, **options: Any
) -> Any:
    """Load a configuration, tokenizer or model from a folder or the hub.

    Args:
        kind: The class whose ``from_pretrained`` loads it.
        flag: The flag that names it, for errors.
        name: The folder or hub id.
        args: The flags.
        **options: Passed on to ``from_pretrained``.

    Returns:
        What ``from_pretrained`` gives.

    Raises:
        ValueError: If there is no such folder, the hub does not give it, or the folder
            does not hold it.
    """
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
        why = (
            "cannot be loaded"
            if local
            else "is no folder here, and the hub did not give it"
        )
        raise ValueError(
            f"{flag}={name} {why} ({str(error).splitlines()[0][:200]}); expected a "
            "folder with config.json, weights and tokenizer, or a hub id and a network;"
            " give a local folder, or no model for the embedded encoder"
        ) from error
