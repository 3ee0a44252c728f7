"""What a teacher is given where its tokenizer gives other inputs than the student's."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from obert_modifiers.core.outputs import TEACHERS_OWN
from obert_modifiers.training.batches import Batch

logger = logging.getLogger(__name__)

_TYPES = "token_type_ids"
_MARK = "lacks_token_types"  # an attribute of a teacher
_PROBES = 200  # words that two tokenizers are compared on


def check_tokens(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, named: str
) -> None:
    """Check that two tokenizers with one vocabulary turn texts into the same tokens.

    Args:
        student: The student's.
        teacher: The teacher's.
        named: The flag and the teacher, for the error.

    Raises:
        ValueError: If they treat case, accents or separators differently.
    """
    words = [word for word in sorted(student.get_vocab()) if word.isalpha()][:_PROBES]
    for word in (*words, "caf\u00e9, it's"):
        # A space before it: some tokenizers of words put one there themselves.
        pair = f" {word} {word.title()}", f" {word.upper()}"
        ours, theirs = (one(*pair)["input_ids"] for one in (student, teacher))
        if ours != theirs:
            raise ValueError(
                f"{named} has a tokenizer that turns{pair[0]} into {theirs} and the "
                f"model's into {ours}; expected the same tokens; take a teacher with "
                "the model's tokenizer, with the same case and separators"
            )


def prepare_(
    teacher: nn.Module,
    student_tokens: PreTrainedTokenizerBase,
    teacher_tokens: PreTrainedTokenizerBase,
    named: str,
) -> None:
    """See that a teacher is given what it was trained with.

    Token types that the student's tokenizer gives and the teacher's does not are kept
    from it, by a hook. Those that it lacks are to be made by `TeacherTypes`, where
    `lacks_types` says so.

    Args:
        teacher: The teacher, which gets the hook.
        student_tokens: The student's tokenizer.
        teacher_tokens: The teacher's own.
        named: The flag and the teacher, for the error.

    Raises:
        ValueError: If the teacher lacks an input that cannot be made.
    """
    ours, theirs = (
        set(one.model_input_names) for one in (student_tokens, teacher_tokens)
    )
    taken = set(inspect.signature(teacher.forward).parameters)
    missing = (theirs & taken) - ours
    if missing - {_TYPES}:
        raise ValueError(
            f"{named} takes {', '.join(sorted(missing - {_TYPES}))}, which the model's "
            "tokenizer does not give; expected the same inputs; give them with "
            f"--tokenizer_name {named.partition('=')[2]}, or take another teacher"
        )
    if _TYPES in taken & ours and _TYPES not in theirs:
        logger.info("%s gets no %s, as its own tokenizer gives none", named, _TYPES)
        teacher.register_forward_pre_hook(_without_types, with_kwargs=True)
    several = getattr(teacher.config, "type_vocab_size", 2) > 1
    if _TYPES in missing and several:
        _check_pairs(teacher_tokens, named)
        setattr(teacher, _MARK, True)


def lacks_types(teacher: Any) -> bool:
    """Tell whether a teacher, from `prepare_`, reads token types that are to be made.

    Args:
        teacher: The teacher, or a word for one.
    """  # noqa: DOC201  said above
    return hasattr(teacher, _MARK)


def _without_types(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    return args, {name: one for name, one in kwargs.items() if name != _TYPES}


class TeacherTypes:
    """Adds the token types of pairs of texts to a batch, for the teacher alone."""

    def __init__(
        self, collate: Callable[..., Batch], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Take what makes a batch.

        Args:
            collate: Makes it of the student's inputs.
            tokenizer: The student's.
        """
        self._collate, self._separator = collate, tokenizer.sep_token_id

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Make a batch.

        Args:
            samples: Its samples.

        Returns:
            The batch with ``teacher_token_type_ids`` (k, T).
        """
        batch = self._collate(samples)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        types = types_of_pairs(ids, mask, self._separator)
        return {**batch, TEACHERS_OWN + _TYPES: types}


def types_of_pairs(ids: Tensor, mask: Tensor, separator: int) -> Tensor:
    """Tell the second text of a pair from the first, as BERT does.

    Args:
        ids: Tokens, (k, T): CLS, the first text, a separator, the second, a separator.
        mask: (k, T), 0 for padding.
        separator: The separator's number.

    Returns:
        (k, T), 1 after the first separator, 0 before and in padding.

    Raises:
        ValueError: If a row has another number of separators.
    """
    here = ids.eq(separator) & mask.ne(0)
    counts = here.sum(-1)
    if (counts != 2).any():
        raise ValueError(
            f"separators={int(counts[counts != 2][0])} in a pair of texts, so that the "
            "teacher's token_type_ids cannot be told; expected 2; take the separator's "
            "token out of the texts, or give the teacher's tokenizer as "
            "--tokenizer_name"
        )
    before = here.cumsum(-1) - here.long()
    return before.gt(0).long() * mask.ne(0).long()


def _check_pairs(tokenizer: PreTrainedTokenizerBase, named: str) -> None:
    made = tokenizer("a", "a a", return_tensors="pt")
    ids, mask = made["input_ids"], torch.ones_like(made["input_ids"])
    separator = tokenizer.sep_token_id
    two = separator is not None and int(ids.eq(separator).sum()) == 2
    if not two or not types_of_pairs(ids, mask, separator).equal(made[_TYPES]):
        raise ValueError(
            f"{named} takes {_TYPES} of another form than BERT's, which the model's "
            "tokenizer does not give; expected the same inputs; give them with "
            f"--tokenizer_name {named.partition('=')[2]}, or take another teacher"
        )
