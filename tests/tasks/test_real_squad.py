"""SQuAD itself: its answers come back from tokens, and measure as they should."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from obert_modifiers import embedded
from obert_modifiers.tasks.question_answering import answer_all
from obert_modifiers.tasks.squad.answers import Search
from obert_modifiers.tasks.squad.data import answers_of, windows_of
from obert_modifiers.tasks.squad.metrics import (
    normalize,
    squad_metrics,
    squad_v2_metrics,
)
from obert_modifiers.tasks.squad.windows import WindowShape
from tests.tasks.inputs import load

SHAPE = WindowShape(384, 128)
SOME = 400
# Windows of 384 tokens that share 128, as BERT's uncased vocabulary cuts them.
WINDOWS = {"train": 88_524, "validation": 10_784}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.encoder_path())


@pytest.fixture(scope="module")
def splits(data_set, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load("question_answering", cache, dataset_name=data_set("squad"))[1].splits


def cut(rows, tokenizer):
    return windows_of(rows, tokenizer, SHAPE, labelled=True, with_null=False)


def texts_of(rows) -> list[list[str]]:
    return [[text for _, text in answers_of(value)] for value in rows["answers"]]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_tokens_give_the_answers_back(splits, tokenizer, split: str) -> None:
    """Tokens give the answer's text, or a longer word where it is a part of one."""
    rows = splits[split].select(range(SOME))
    windows, places = cut(rows, tokenizer)
    found: dict[int, list[str]] = {row: [] for row in range(SOME)}
    for window, place in zip(windows, places, strict=True):
        first, last = window["start_positions"], window["end_positions"]
        if first != place["null"]:
            context = rows[place["question"]]["context"]
            text = context[place["starts"][first] : place["ends"][last]]
            found[place["question"]].append(text)
    parts = 0
    for row, recovered in found.items():
        assert recovered, f"no window holds the answer to question {row}"
        answer = texts_of(rows.select([row]))[0][0]
        for text in recovered:
            if text != answer:
                assert answer in text and len(text.split()) == len(answer.split())
                parts += 1
    assert parts <= SOME // 50


def test_sure_logits_give_the_right_answers(splits, tokenizer) -> None:
    """Logits that point at the labels go all the way to EM and F1."""
    rows = splits["validation"].select(range(SOME))
    windows, places = cut(rows, tokenizer)
    logits = {}
    for side in ("start", "end"):
        sure = np.full((len(windows), SHAPE.max_length), -5.0, np.float32)
        sure[np.arange(len(windows)), windows[f"{side}_positions"]] = 5.0
        logits[f"{side}_logits"] = sure

    def measured(logits, search):
        found = answer_all(rows, places, logits, search)
        return squad_metrics([one.text for one in found], texts_of(rows))

    for search in (Search(), Search(with_null=True)):
        # As many as `test_tokens_give_the_answers_back` lets be parts of words.
        assert min(measured(logits, search).values()) >= 98
    # One position too far is another answer.
    moved = logits | {"end_logits": np.roll(logits["end_logits"], 1, axis=1)}
    assert measured(moved, Search())["exact_match"] < 50


@pytest.mark.parametrize("measure", [squad_metrics, squad_v2_metrics])
def test_right_answers_measure_as_perfect(splits, measure) -> None:
    truths = texts_of(splits["validation"])
    assert len(truths) == 10_570
    figures = measure([texts[0] for texts in truths], truths)
    assert (figures["exact_match"], figures["f1"]) == (100.0, 100.0)
    # One of the last answers is a full stop, which has no words to be in common; v2
    # leaves it out of the right ones.
    lasts = [texts[-1] for texts in truths]
    assert [text for text in lasts if not normalize(text)] == ["."]
    figures, missed = measure(lasts, truths), 100 / len(truths)
    assert figures["f1"] == pytest.approx(100 - missed)
    v1 = measure is squad_metrics
    assert figures["exact_match"] == pytest.approx(100 if v1 else 100 - missed)
    others = measure([texts[0] for texts in truths[1:] + truths[:1]], truths)
    assert others["exact_match"] < 5 and others["f1"] < 10


@pytest.mark.slow
@pytest.mark.parametrize("split", WINDOWS)
def test_there_are_as_many_windows_as_others_count(splits, tokenizer, split) -> None:
    windows, places = cut(splits[split], tokenizer)
    assert len(windows) == len(places) == WINDOWS[split]
