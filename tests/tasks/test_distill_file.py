"""Texts without labels from a file, for each task that has a teacher."""

import pytest

from obert_modifiers import tasks
from obert_modifiers.tasks.data import unlabelled
from obert_modifiers.tasks.flags import ModelArguments
from obert_modifiers.tasks.run.models import find
from obert_modifiers.tasks.task import Inputs
from tests import questions, tiny
from tests.tasks import inputs
from tests.tasks.inputs import refused
from tests.tasks.test_token_classification import rows as tagged
from tests.words import TWO_EPOCHS

SELF = "  - !LogitDistillationModifier\n      hardness: {}\n      teacher: {}\n"


def texts_of(name, small, tmp_path, train, path, **flags):
    """Read a task's data and the texts beside it; returns both, as samples."""
    task = tasks.load(name)
    args, data = inputs.load(name, tmp_path, train_file=train, **flags)
    args.distill_file = str(path)
    labels = None if task.labels is None else task.labels(data, args, {})
    given = Inputs(data, labels, find(ModelArguments(str(small.model))), args, 0)
    made = unlabelled.add(task, given, task.prepare(given)).data
    return made.train, made.texts, made


SENTENCES = ["good film", "it is bad"]


@pytest.mark.parametrize("ending", ["txt", "csv", "json", "parquet"])
def test_sentences_of_any_file_are_read_without_their_labels(
    small, tmp_path, ending
) -> None:
    path = tmp_path / f"texts.{ending}"
    if ending == "txt":
        path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    else:
        rows = [{"sentence": one, "label": 7} for one in SENTENCES]
        inputs.write(path, rows)
    name = "text_classification"
    train, texts, data = texts_of(name, small, tmp_path, small.train, path)
    tokenizer = find(ModelArguments(str(small.model))).tokenizer
    assert [texts[i]["input_ids"] for i in range(2)] == tokenizer(SENTENCES).input_ids
    assert texts.token_counts() == [4, 5] and len(texts) == 2
    assert all(texts[i]["labels"] == train[0]["labels"] for i in range(2))
    batch = data.collate([train[0], texts[0], texts[1]])
    assert batch["labels"].shape == (3,)


def test_questions_and_words(small, tmp_path) -> None:
    asked = tiny.write_rows(tmp_path / "asked.jsonl", questions.rows(8))
    pairs = [{"question": "is it", "context": "a good film"}] * 3
    path = inputs.write(tmp_path / "pairs.csv", pairs)
    name = "question_answering"
    short = {"max_seq_length": 24, "doc_stride": 6}
    train, texts, data = texts_of(name, small, tmp_path, asked, path, **short)
    batch = data.collate([train[0], *(texts[i] for i in range(3))])
    assert batch["start_positions"].tolist()[1:] == [0, 0, 0]
    words = tiny.write_rows(tmp_path / "tags.json", tagged(8))
    plain = [{"tokens": row["tokens"]} for row in tagged(5, 2)]
    path = inputs.write(tmp_path / "words.parquet", plain)
    name = "token_classification"
    train, texts, data = texts_of(name, small, tmp_path, words, path)
    counted = [sum(label != -100 for label in texts[i]["labels"]) for i in range(5)]
    assert counted == [len(row["tokens"]) for row in plain]
    assert data.collate([train[0], texts[0]])["labels"].shape[0] == 2


def test_a_run_learns_from_them(run_task, small, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TWO_EPOCHS + SELF.format(1.0, "self"), encoding="utf-8")
    path = tmp_path / "texts.txt"
    path.write_text("good film\nbad film\n" * 8, encoding="utf-8")
    flags = {"train_file": small.train, "recipe": recipe, "distill_file": path}
    flags |= {"max_train_samples": 16, "distill_share": 0.25}
    record = run_task("text_classification", "--do_train", **flags)
    assert "16 texts without labels are 0.25 of each batch" in record["notes"]
    assert record["steps"] == 4  # of 16 samples in batches of 8, twice
    name = "text_classification"
    for text, more, said in [
        (TWO_EPOCHS, {}, "distill_file=.* have no loss without a teacher"),
        (TWO_EPOCHS + SELF.format(1.0, "disable"), {}, "have no loss without"),
        (TWO_EPOCHS + SELF.format(0.0, "self"), {}, "hardness above 0"),
        (None, {"distill_share": 1.0}, "--distill_share=1.0 is outside"),
        (
            None,
            {"distill_file": tmp_path / "no.txt"},
            "--distill_file=.*no.txt does not exist",
        ),
    ]:
        if text is not None:
            recipe.write_text(text, encoding="utf-8")
        else:
            recipe.write_text(TWO_EPOCHS + SELF.format(1.0, "self"), encoding="utf-8")
        with refused(said):
            run_task(name, "--do_train", out="b", **flags | more)


def test_tasks_that_read_texts_already_refuse_them() -> None:
    task = tasks.load("masked_language_modeling")
    given = task.parse(["--train_file", "a.txt", "--distill_file", "b.txt"])
    with refused("--distill_file=b.txt is for tasks with labels"):
        unlabelled.check(task, given)
    task = tasks.load("text_classification")
    with refused("--distill_file=b.txt needs training"):
        unlabelled.check(task, task.parse(["--distill_file", "b.txt", "--do_eval"]))
