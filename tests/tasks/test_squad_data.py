"""The forms in which SQuAD comes give the same questions."""

import json
from dataclasses import asdict

import pytest
from datasets import Dataset
from transformers import BertTokenizerFast

from obert_modifiers.tasks.question_answering import TASK
from obert_modifiers.tasks.squad.data import answers_of, ids_of, read, windows_of
from obert_modifiers.tasks.squad.windows import WindowShape
from tests import questions
from tests.tasks import inputs
from tests.tasks.inputs import counts, refused

ROWS = questions.rows(7, empty=0.3)


def plain(rows: Dataset) -> list[list]:
    names = ("id", "question", "context")
    return [[*map(row.get, names), answers_of(row["answers"])] for row in rows]


EXPECTED = plain(ROWS)


def write(folder, form: str):
    """Write the same questions in one of the forms that people have."""
    if form == "squad":
        return questions.write_document(folder / "train.json", ROWS)
    if form == "rows under data":
        path = folder / "train.json"
        path.write_text(json.dumps({"version": "1", "data": ROWS}))
        return path
    return inputs.write(folder / f"train.{form}", ROWS)


FORMS = ["squad", "rows under data", "parquet", "json", "jsonl"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("named", [False, True])
def test_every_form_gives_the_same_questions(tmp_path, form: str, named: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    path = write(folder, form)
    given = {"dataset_name": str(folder)} if named else {"train_file": str(path)}
    flags = TASK.flags(version_2_with_negative=True, **given)
    splits, description = read(flags, str(tmp_path / "cache"))
    assert list(splits) == ["train"]
    assert description == str(folder if named else path)
    assert plain(splits["train"]) == EXPECTED
    assert [len(answers) for *_, answers in EXPECTED] == [1, 1, 1, 0, 1, 1, 0]
    found = TASK.columns(splits["train"], flags, description)
    assert found == (("question", "context"), "answers")


def test_splits_may_come_in_different_forms(tmp_path) -> None:
    train, test = write(tmp_path, "squad"), write(tmp_path, "jsonl")
    other = questions.write_document(tmp_path / "dev-v2.0.json", ROWS[:2])
    files = {"train_file": train, "validation_file": test, "test_file": other}
    flags = TASK.flags(**{name: str(path) for name, path in files.items()})
    before = asdict(flags)
    splits, _ = read(flags, str(tmp_path / "cache"))
    assert counts(splits) == {"train": 7, "validation": 7, "test": 2}
    assert asdict(flags) == before
    flags = TASK.flags(dataset_name=str(tmp_path))
    (tmp_path / "train.jsonl").unlink()
    assert set(read(flags, None)[0]) == {"train", "validation"}


def test_two_files_of_a_split_are_refused(tmp_path) -> None:
    """Of both versions of SQuAD in one folder the second would hide the first."""
    for name in ("dev-v1.1.json", "dev-v2.0.json"):
        questions.write_document(tmp_path / name, ROWS[:2])
    with refused("has dev-v1.1.json and dev-v2.0.json for its validation split"):
        read(TASK.flags(dataset_name=str(tmp_path)), None)


def test_answers_may_be_a_list_or_missing() -> None:
    answers = [(3, "film"), (8, "warm")]
    assert answers_of([{"text": t, "answer_start": s} for s, t in answers]) == answers
    assert answers_of(None) == []


def test_ids_are_the_questions_or_numbers() -> None:
    assert ids_of(Dataset.from_list(ROWS)) == [f"q0-{i}" for i in range(7)]
    assert ids_of(Dataset.from_list([{"question": "a"}] * 2)) == ["0", "1"]
    with refused("id=x is that of two questions"):
        ids_of(Dataset.from_list([{"id": "y"}, {"id": "x"}, {"id": "x"}]))


@pytest.fixture(scope="module")
def cut(small):
    tokenizer = BertTokenizerFast.from_pretrained(small.model)
    shape = tokenizer, WindowShape(32, 8)
    return lambda rows, labelled=True: windows_of(
        Dataset.from_list(rows), *shape, labelled=labelled, with_null=False
    )


def test_windows_know_the_row_of_their_question(cut) -> None:
    rows = questions.rows(1100)  # more than one batch of the map
    windows, places = cut(rows)
    given = {"input_ids", "token_type_ids", "attention_mask"}
    assert set(windows.column_names) == given | {"start_positions", "end_positions"}
    assert len(windows) == len(places) > 1100
    assert places["question"] == sorted(places["question"])
    assert set(places["question"]) == set(range(1100))
    for window, place in zip(windows, places, strict=True):
        row = rows[place["question"]]
        first, last = window["start_positions"], window["end_positions"]
        text = row["context"][place["starts"][first] : place["ends"][last]]
        assert text == (row["answers"]["text"][0] if first else "")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": [], "answer_start": []}, "row 1 has no answer.*--version_2"),
        ({"text": ["film"], "answer_start": [3]}, "'film' of row 1 is not at"),
    ],
)
def test_an_answer_that_is_not_there_is_an_error(cut, answers, message) -> None:
    row = {"question": "is it", "context": "the film", "answers": answers}
    right = row | {"answers": {"text": ["film"], "answer_start": [4]}}
    with refused(message):
        cut([right, row])
    cut([right, row], labelled=False)


def test_files_that_are_not_squads_are_errors(tmp_path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": [{}]}]}]}))
    flags = TASK.flags(train_file=str(path))
    with refused(f"--train_file={path} is not as SQuAD's: KeyError 'context'"):
        read(flags, None)
    path.write_text('{"sentence": "a film"}\n{"sentence": "a plot"}\n')
    rows = read(flags, str(tmp_path / "cache"))[0]["train"]
    with refused("columns sentence; expected question"):
        TASK.columns(rows, flags, "data")
