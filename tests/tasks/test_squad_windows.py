"""Windows of long contexts, against those cut by hand from lists of words."""

import random
from collections.abc import Callable

import pytest
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from obert_modifiers.tasks.squad.windows import (
    WindowShape,
    check_windows,
    cut_questions,
    cut_windows,
    label_windows,
)
from tests import tiny
from tests.tasks.inputs import refused
from tests.tasks.test_families import byte_level

WORDS = [*tiny.GOOD, *tiny.BAD, *tiny.OTHER]


@pytest.fixture(scope="module")
def bert(small) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(small.model)


@pytest.fixture(scope="module")
def roberta() -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes whose words hold the space before them."""
    return byte_level("roberta", " ".join(WORDS), trim_offsets=False)


def expected_windows(question: str, context: str, shape: WindowShape) -> list[dict]:
    """Cut windows by the definition, where each word is one token."""
    asked, words = question.split(), context.split()
    room = shape.max_length - len(asked) - 3
    windows, begin, outside = [], 0, [-1] * (len(asked) + 2)
    starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
    ends = [start + len(word) for start, word in zip(starts, words, strict=True)]
    while True:
        part = slice(begin, min(begin + room, len(words)))
        windows.append({
            "starts": [*outside, *starts[part], -1],
            "ends": [*outside, *ends[part], -1],
            "text": ["[CLS]", *asked, "[SEP]", *words[part], "[SEP]"],
            "words": list(range(part.start, part.stop)),
        })
        if begin + room >= len(words):
            return windows
        begin += room - shape.doc_stride


def draw_rows(count: int) -> tuple[list[str], list[str], list[tuple[int, int]]]:
    """Draw questions, contexts, and the first and last word of the answers."""
    draw = random.Random(5)
    questions, contexts, spans = [], [], []
    for _ in range(count):
        questions.append(" ".join(draw.choices(WORDS, k=draw.randrange(1, 6))))
        length = draw.randrange(1, 60)
        contexts.append(" ".join(draw.choices(WORDS, k=length)))
        first = draw.randrange(length)
        spans.append((first, min(length - 1, first + draw.randrange(4))))
    return questions, contexts, spans


def spoken(context: str, first: int, last: int) -> tuple[int, str]:
    """Return where some words of a context start, and them."""
    words = context.split()
    start = len(" ".join([*words[:first], ""]))
    return start, " ".join(words[first : last + 1])


SHAPES = [WindowShape(32, 8), WindowShape(16, 1), WindowShape(20, 0)]


def check_all(bert, shape: WindowShape, label: Callable = label_windows) -> None:
    questions, contexts, spans = draw_rows(40)
    found = cut_windows(bert, questions, contexts, shape)
    answers = [spoken(c, *span) for c, span in zip(contexts, spans, strict=True)]
    labels, number, held = label(found, answers), 0, 0
    for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        for window in expected_windows(question, context, shape):
            tokens = bert.convert_ids_to_tokens(found["input_ids"][number])
            assert tokens == window["text"]
            for name in ("starts", "ends"):
                assert found[name][number] == window[name]
            assert (found["question"][number], found["null"][number]) == (row, 0)
            shift = len(question.split()) + 2 - window["words"][0]
            holds = set(range(spans[row][0], spans[row][1] + 1)) <= set(window["words"])
            place = [word + shift for word in spans[row]] if holds else [0, 0]
            assert labels[number] == place
            held += holds
            number += 1
    assert number == len(found["input_ids"]) == len(labels)
    assert 0 < held


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_and_labels_are_those_of_the_definition(bert, shape) -> None:
    check_all(bert, shape)


def the_word_after(windows, answers):
    return [[a, b + 1 if b else b] for a, b in label_windows(windows, answers)]


def what_there_is_of_it(windows, answers):
    """Label the part of an answer that a window holds."""
    found = []
    for question, starts in zip(windows["question"], windows["starts"], strict=True):
        begin, text = answers[question]
        inside = range(begin, begin + len(text))
        touched = [i for i, start in enumerate(starts) if start in inside]
        found.append([touched[0], touched[-1]] if touched else [0, 0])
    return found


@pytest.mark.parametrize("wrong", [the_word_after, what_there_is_of_it])
def test_planted_labels_are_found(bert, wrong: Callable) -> None:
    with pytest.raises(AssertionError):
        check_all(bert, SHAPES[0], wrong)


def test_a_planted_stride_is_found(bert, monkeypatch) -> None:
    def wrong(tokenizer, questions, contexts, shape, cut=cut_windows):
        other = WindowShape(shape.max_length, shape.doc_stride + 1)
        return cut(tokenizer, questions, contexts, other)

    monkeypatch.setitem(check_all.__globals__, "cut_windows", wrong)
    with pytest.raises((AssertionError, IndexError)):
        check_all(bert, SHAPES[0])


def test_spaces_that_belong_to_tokens_are_no_part_of_answers(roberta) -> None:
    questions, contexts, spans = draw_rows(40)
    contexts = [context.replace("with", "naïve 😀 with") for context in contexts]
    found = cut_windows(roberta, questions, contexts, WindowShape(64, 16))
    assert "token_type_ids" not in found
    answers = [spoken(c, *span) for c, span in zip(contexts, spans, strict=True)]
    labels, held = label_windows(found, answers), set()
    names = ("question", "input_ids", "starts", "ends")
    columns = (found[name] for name in names)
    for row, ids, starts, ends, (first, last) in zip(*columns, labels, strict=True):
        assert ids[0] == roberta.cls_token_id and len(ids) <= 64
        for start, end in zip(starts, ends, strict=True):
            piece = contexts[row][start:end]
            assert start == -1 or piece == piece.strip()
        if first:
            assert contexts[row][starts[first] : ends[last]] == answers[row][1]
            held.add(row)
    assert held == set(range(40))
    raw = roberta(questions[0], contexts[0], return_offsets_mapping=True)
    pairs = zip(raw["offset_mapping"], raw.sequence_ids(0), strict=True)
    pieces = [contexts[0][a:b] for (a, b), which in pairs if which == 1]
    assert any(piece.startswith(" ") for piece in pieces), "it keeps no spaces"


def test_an_answer_inside_of_a_word_is_the_word(bert) -> None:
    context = "the film is warm"
    found = cut_windows(bert, ["what is it"], [context], WindowShape(32, 4))
    for answer in ((5, "il"), (4, "film"), (4, "film "), (3, " film")):
        ((first, last),) = label_windows(found, [answer])
        assert context[found["starts"][0][first] : found["ends"][0][last]] == "film"
    assert label_windows(found, [None]) == [[0, 0]]
    assert label_windows(found, [(4, "  ")]) == [[0, 0]]


def test_long_questions_are_cut(bert, roberta) -> None:
    long = "  " + " ".join(["what"] * 99)
    shape = WindowShape(32, 16)
    assert shape.question_tokens(bert) == 32 - 3 - 16 - 1
    assert WindowShape(384, 128).question_tokens(bert) == 64
    assert cut_questions(bert, [long, " a film "], 3) == ["what what what", "a film"]
    assert cut_questions(roberta, ["😀😀😀"], 2) == [""]  # four tokens each
    found = cut_windows(bert, [long], ["the film is warm"], shape)
    assert [len(ids) for ids in found["input_ids"]] == [12 + 4 + 3]


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_windows(bert, small) -> None:
    left = BertTokenizerFast.from_pretrained(small.model, padding_side="left")
    texts = draw_rows(5)[:2]
    assert cut_windows(bert, *texts, SHAPES[0]) == cut_windows(left, *texts, SHAPES[0])


def test_what_cannot_make_windows_is_an_error(bert, roberta) -> None:
    with refused("--doc_stride=30 leaves no room.*use 10"):
        check_windows(bert, WindowShape(32, 30))
    check_windows(bert, WindowShape(32, 27))
    roberta = PreTrainedTokenizerFast(tokenizer_object=roberta.backend_tokenizer)
    with refused("has no classification token"):
        check_windows(roberta, WindowShape(32, 8))
