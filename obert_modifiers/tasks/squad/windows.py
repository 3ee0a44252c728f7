"""Question answering: a question and a context as the windows that a model reads.

A context that is too long is cut into overlapping windows, each behind the question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from obert_modifiers.tasks.data.columns import Batch

MAX_QUESTION_TOKENS = 64  # as in BERT's own script; SQuAD's longest are below it
OUTSIDE = -1  # the characters of a token that is not of the context


@dataclass(frozen=True)
class WindowShape:
    """How a question and its context become windows."""

    max_length: int  # the most tokens, question and special tokens included
    doc_stride: int  # tokens of the context that neighbouring windows share

    def question_tokens(self, tokenizer: Tokenizer) -> int:
        """Count the question's tokens that fit beside the shared ones and one more."""
        special = tokenizer.num_special_tokens_to_add(pair=True)
        room = self.max_length - special - self.doc_stride - 1
        return min(MAX_QUESTION_TOKENS, room)


def check_windows(tokenizer: Tokenizer, shape: WindowShape) -> None:
    """Check that a tokenizer can make windows of a shape."""
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(
            f"tokenizer={name} tells no offsets; expected a fast tokenizer, which knows"
            " the characters of each token; save the model with tokenizer.json"
        )
    if tokenizer.cls_token_id is None:
        raise ValueError(
            f"tokenizer={name} has no classification token; expected one, to point at "
            "where a window holds no answer; take an encoder such as BERT or RoBERTa"
        )
    if shape.question_tokens(tokenizer) < 1:
        raise ValueError(
            f"--doc_stride={shape.doc_stride} leaves no room for the question; "
            f"expected less; use {max(shape.max_length // 3, 1)}"
        )


def cut_questions(
    tokenizer: Tokenizer, questions: Sequence[str], most: int
) -> list[str]:
    """Cut questions to a number of tokens without special ones; strip white space."""
    texts = [question.strip() for question in questions]
    # At once for all, as hardly any is too long.
    lengths = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [
        text if length <= most else _cut(tokenizer, text, most)
        for text, length in zip(texts, lengths, strict=True)
    ]


def _cut(tokenizer: Tokenizer, text: str, most: int) -> str:
    while True:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if len(encoded["input_ids"]) <= most:
            return text
        # A character may be several tokens; one less makes sure that it ends.
        end = min(encoded["offset_mapping"][most - 1][1], len(text) - 1)
        text = text[:end].rstrip()


def cut_windows(
    tokenizer: Tokenizer,
    questions: Sequence[str],
    contexts: Sequence[str],
    shape: WindowShape,
) -> Batch:
    """Cut contexts into windows behind their questions; gives a list entry for each.

    They are what the model reads; ``question``, the index of its question; ``starts``
    and ``ends``, the characters ``[start, end)`` that each token stands for, `OUTSIDE`
    for tokens that are not of the context; ``null``, the position for "no answer".
    """
    encoded = tokenizer(
        cut_questions(tokenizer, questions, shape.question_tokens(tokenizer)),
        list(contexts),
        max_length=shape.max_length,
        stride=shape.doc_stride,
        truncation="only_second",
        padding=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    owners = list(encoded["overflow_to_sample_mapping"])
    windows: Batch = {
        name: encoded[name] for name in tokenizer.model_input_names if name in encoded
    }
    windows |= {"question": owners, "starts": [], "ends": []}
    for number, owner in enumerate(owners):
        of_tokens = encoded["offset_mapping"][number], encoded.sequence_ids(number)
        characters = [
            _stripped(contexts[owner], *offsets)
            if sequence == 1
            else (OUTSIDE, OUTSIDE)
            for offsets, sequence in zip(*of_tokens, strict=True)
        ]
        windows["starts"].append([start for start, _ in characters])
        windows["ends"].append([end for _, end in characters])
    cls = tokenizer.cls_token_id
    return windows | {"null": [ids.index(cls) for ids in encoded["input_ids"]]}


def _stripped(context: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the space that some tokenizers count to a word; an answer does not."""
    while start < end and context[start].isspace():
        start += 1
    while start < end and context[end - 1].isspace():
        end -= 1
    return start, end


def label_windows(
    windows: Mapping[str, Sequence[Any]], answers: Sequence[tuple[int, str] | None]
) -> list[list[int]]:
    """Find the first and the last token of the answer in each window.

    An answer is where it starts in the context and its text. Where a window does not
    hold all of it, both are the position of "no answer".
    """
    places = (windows[name] for name in ("question", "starts", "ends", "null"))
    return [
        _covering(answers[question], starts, ends) or [null, null]
        for question, starts, ends, null in zip(*places, strict=True)
    ]


def _covering(
    answer: tuple[int, str] | None, starts: Sequence[int], ends: Sequence[int]
) -> list[int] | None:
    if answer is None or not answer[1].strip():
        return None
    begin, text = answer
    begin += len(text) - len(text.lstrip())
    end = begin + len(text.strip())
    touched = [
        position
        for position, (start, stop) in enumerate(zip(starts, ends, strict=True))
        if start < end and stop > begin and start != OUTSIDE
    ]
    if not touched or starts[touched[0]] > begin or ends[touched[-1]] < end:
        return None
    return [touched[0], touched[-1]]
