"""The teacher, and what it is given where its tokenizer gives other inputs."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer
from transformers import PreTrainedConfig as Config
from transformers import PreTrainedTokenizerBase as Tokenizer

from obert_modifiers.core.outputs import TEACHERS_OWN
from obert_modifiers.core.positions import usable_length
from obert_modifiers.modifiers._classes import class_names, order_for
from obert_modifiers.tasks.data.labels import Labels
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run.models import Pretrained, check_vocabulary, fetch
from obert_modifiers.training.batches import Batch

logger = logging.getLogger(__name__)

_TYPES = "token_type_ids"
_MARK = "lacks_token_types"  # an attribute of a teacher
_PROBES = 200  # words that two tokenizers are compared on


def load_teacher(
    pretrained: Pretrained,
    model_class: Any,
    labels: Labels | None,
    args: ModelArguments,
    named: str | None = None,
) -> nn.Module | str | None:
    """Load the teacher that `distill_teacher` names, or else the recipe (`named`).

    It must have the student's tokens and classes; ``self``, ``disable`` and None are
    returned as they are.
    """
    flag, name = "--distill_teacher", args.distill_teacher
    if name is None:
        flag, name = "teacher", named
    if name in (None, "self", "disable"):
        return name
    title = f"{flag}={name}"
    config = fetch(AutoConfig, flag, name, args)
    ours, theirs = pretrained.tokenizer, fetch(AutoTokenizer, flag, name, args)
    if theirs.get_vocab() != ours.get_vocab():
        raise ValueError(
            f"{title} has another vocabulary than the model; expected the same "
            "tokens; take a teacher with the model's tokenizer"
        )
    if labels is not None:
        _check_classes(config, labels, title)
    check_vocabulary(config, theirs, title)
    check_tokens(ours, theirs, title)
    teacher = fetch(model_class, flag, name, args).float().eval()
    prepare_(teacher, ours, theirs, title)
    return teacher


def _check_classes(config: Config, labels: Labels, named: str) -> None:
    """Check that a teacher has the data set's classes; `named` is it, for the error."""
    names = tuple(class_names(config))
    theirs, ours = ", ".join(names), ", ".join(labels.names)
    if config.num_labels != labels.num_labels:
        raise ValueError(
            f"{named} has the classes {theirs}; expected {ours or 'one number'}; "
            "train it on this data set"
        )
    named_by_hand = not all(name.startswith("LABEL_") for name in names)
    # Names in another order are the distillation modifier's to bring into ours.
    if named_by_hand and labels.names and order_for(labels.names, names) is None:
        text = "%s calls its classes %s, the data set %s; they are taken in this order"
        logger.warning(text, named, theirs, ours)


def check_length(teacher: Any, length: int) -> None:
    """Check that a teacher reads the student's longest sample."""
    most = usable_length(teacher) if isinstance(teacher, nn.Module) else None
    if most is not None and length > most:
        raise ValueError(
            f"teacher={teacher.config.name_or_path} reads {most} tokens at most and a "
            f"sample has {length}; expected no more; give --max_seq_length {most}"
        )


def check_tokens(student: Tokenizer, teacher: Tokenizer, named: str) -> None:
    """Check that two tokenizers with one vocabulary turn texts into the same tokens."""
    words = [word for word in sorted(student.get_vocab()) if word.isalpha()][:_PROBES]
    for word in (*words, "caf\u00e9, it's"):
        # A space before it: some tokenizers of words put one there themselves.
        pair = f" {word} {word.title()}", f" {word.upper()}"
        ours, theirs = (one(*pair)["input_ids"] for one in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"{named} has a tokenizer that turns{pair[0]} into {theirs} and the "
                f"model's into {ours}; expected the same tokens, case and separators; "
                "take a teacher with the model's tokenizer"
            )


def prepare_(
    teacher: nn.Module,
    student_tokens: Tokenizer,
    teacher_tokens: Tokenizer,
    named: str,
) -> None:
    """See that a teacher is given what it was trained with.

    Token types that its own tokenizer does not give are kept from it, by a hook. Those
    that the student lacks are made by `TeacherTypes`, where `lacks_types` says so.
    """
    ours = set(student_tokens.model_input_names)
    theirs = set(teacher_tokens.model_input_names)
    taken = set(inspect.signature(teacher.forward).parameters)
    missing = (theirs & taken) - ours
    lacking, why = missing - {_TYPES}, ""
    if _TYPES in missing and getattr(teacher.config, "type_vocab_size", 2) > 1:
        setattr(teacher, _MARK, True)
        if not lacking and not _as_berts(teacher_tokens):
            lacking, why = {_TYPES}, " of another form than BERT's"
    if lacking:
        raise ValueError(
            f"{named} takes {', '.join(sorted(lacking))}{why}, which the model's "
            "tokenizer does not give; expected the same inputs; give them with "
            f"--tokenizer_name {named.partition('=')[2]}, or take another teacher"
        )
    if _TYPES in taken & ours and _TYPES not in theirs:
        logger.info("%s gets no %s, as its own tokenizer gives none", named, _TYPES)
        teacher.register_forward_pre_hook(_without_types, with_kwargs=True)


def lacks_types(teacher: Any) -> bool:
    """Tell whether a teacher from `prepare_` reads token types that are to be made."""
    return hasattr(teacher, _MARK)


def _without_types(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    return args, {name: one for name, one in kwargs.items() if name != _TYPES}


class TeacherTypes:
    """Adds the token types of pairs of texts to a batch, only for the teacher."""

    def __init__(self, collate: Callable[..., Batch], separator: int) -> None:
        self._collate, self._separator = collate, separator

    def __call__(self, samples: Sequence[Any]) -> Batch:
        batch = self._collate(samples)
        given = batch["input_ids"], batch["attention_mask"]
        types = types_of_pairs(*given, self._separator)
        return {**batch, TEACHERS_OWN + _TYPES: types}


def types_of_pairs(ids: Tensor, mask: Tensor, separator: int) -> Tensor:
    """Tell the second text of a pair from the first, as BERT does.

    `ids` (k, T) have a separator after each text, `mask` is 0 for padding. Returns
    (k, T), 1 after the first separator, 0 before and in padding.
    """
    here = ids.eq(separator) & mask.ne(0)
    counts = here.sum(-1)
    if (counts != 2).any():
        raise ValueError(
            f"separators={int(counts[counts != 2][0])} in a pair of texts do not tell "
            "the teacher's token_type_ids; expected 2; take that token out of the texts"
        )
    before = here.cumsum(-1) - here.long()
    return before.gt(0).long() * mask.ne(0).long()


def _as_berts(tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer's token types are those that `types_of_pairs` makes."""
    made = tokenizer("a", "a a", return_tensors="pt")
    ids, separator = made["input_ids"], tokenizer.sep_token_id
    if separator is None or int(ids.eq(separator).sum()) != 2:
        return False
    types = types_of_pairs(ids, torch.ones_like(ids), separator)
    return types.equal(made[_TYPES])
