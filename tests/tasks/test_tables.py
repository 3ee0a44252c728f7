"""Files with commas and tabs: text is text, and every row is counted."""

import csv
import logging
from pathlib import Path

import pytest

from obert_modifiers.tasks.data.tables import read_table
from tests.tasks import inputs
from tests.tasks.inputs import refused

WORDS = ["null", "NA", "None", "nan", "N/A", "NULL", "<NA>", "n/a", "a fine film"]


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(path: Path, text: str):
    return read_table([table(path, text)]).to_list()


def load(tmp_path, **flags):
    return inputs.load("text_classification", tmp_path, **flags)[1]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_words_that_look_like_nothing_are_text(tmp_path, suffix):
    mark = "," if suffix == ".csv" else "\t"
    lines = [f"text{mark}label", *(f"{word}{mark}{word}" for word in WORDS)]
    path = table(tmp_path / "set" / f"train{suffix}", "\n".join(lines) + "\n")
    expected = [{"text": word, "label": word} for word in WORDS]
    for flags in ({"train_file": path}, {"dataset_name": tmp_path / "set"}):
        assert load(tmp_path, **flags).splits["train"].to_list() == expected


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "0", ""], [1, 0, None]),
        (["1", "NA", "-2"], [1, None, -2]),
        (["0.5", "nan", "1e-3", "2"], [0.5, None, 0.001, 2.0]),
        (["01", "2", "10"], ["01", "2", "10"]),
        (["1", "x", "null"], ["1", "x", "null"]),
        (["True", "False"], ["True", "False"]),
        (["", ""], [None, None]),
        (["12345678901234567890", "1"], [12345678901234567890.0, 1.0]),
    ],
)
def test_a_column_of_numbers_alone_is_numbers(tmp_path, cells, values):
    text = "a,b\n" + "".join(f"x,{cell}\n" for cell in cells)
    found = [row["b"] for row in rows_of(tmp_path / "t.csv", text)]
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


def test_types_are_those_of_the_whole_column(tmp_path):
    cells = [str(i) for i in range(20_001)] + ["x"]
    text = "a,b\n" + "".join(f"{cell},{cell}\n" for cell in cells)
    found = read_table([table(tmp_path / "t.csv", text)])
    assert found["a"][:] == cells


def test_tabs_are_read_without_quoting(tmp_path, caplog):
    texts = [f"text {i}" for i in range(20)]
    texts[4] = texts[13] = '"a lone mark'
    texts[7], texts[9] = 'six " tall', '"all of it"'
    text = "text\tlabel\n" + "".join(f"{one}\t{i % 2}\n" for i, one in enumerate(texts))
    rows = rows_of(tmp_path / "t.tsv", text)
    assert rows == [{"text": one, "label": i % 2} for i, one in enumerate(texts)]
    assert not caplog.records
    rows = rows_of(tmp_path / "t.tsv", text + '"a ""quoted"" cell"\t1\n')
    assert rows[-1]["text"] == '"a ""quoted"" cell"'
    assert "1 rows have quotation marks doubled" in caplog.text


def test_tabs_below_a_quoted_header_are_read_with_quoting(tmp_path):
    path = tmp_path / "t.tsv"
    rows = [{"text": 'a "fine" film\nof it', "label": "x"}]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert read_table([path]).to_list() == rows


def test_rows_that_a_lone_quotation_mark_joins_are_counted(tmp_path, caplog):
    lines = [f"text {i},{i % 2}\n" for i in range(20)]
    lines[4], lines[13] = '"' + lines[4], '"' + lines[13]
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path / "t.csv", "text,label\n" + "".join(lines))
    assert len(rows) == 11
    assert "t.csv: 9 lines" in caplog.text and "first in line 6" in caplog.text
    assert ".tsv" in caplog.text
    lines = ["text,label\n", '"text,0\n', *["text,1\n"] * 3, 'of 5",1\n']
    rows_of(tmp_path / "closed.csv", "".join(lines))
    assert "closed.csv: 4 lines" in caplog.text


@pytest.mark.parametrize(
    "texts", [["two\nlines", "a, b\nc\nd"], ["one, two\nthree"], ["\n", "x\n\ny"]]
)
def test_texts_of_several_lines_are_no_joined_rows(tmp_path, caplog, texts):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([one, "x"] for one in texts)])
    assert read_table([path])["text"][:] == texts
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\nx,1\n"y,0\nz,1\n', "ends in a cell that a quotation mark opens in line"),
        ('a,b\n"y,0', "opens in line 2; .*save the file as .tsv"),
        ("a,b\nx,1\ny, z,0\n", "line 3 of .*t.csv has 3 cells; expected 2 .*a, b; put"),
    ],
)
def test_rows_that_cannot_be_told_apart_are_an_error(tmp_path, text, message):
    path = table(tmp_path / "t.csv", text)
    with refused(f"--train_file={path}: .*{message}"):
        load(tmp_path, train_file=path)
    table(tmp_path / "set" / "t.csv", text)
    with refused(message):
        load(tmp_path, dataset_name=tmp_path / "set")


def test_short_rows_empty_lines_and_columns_without_a_name(tmp_path):
    text = "\ufeffa,b,,a\n\n1x,,z\n \ny,2,,q,,\n"
    assert rows_of(tmp_path / "t.csv", text) == [
        {"a": "1x", "b": None, "Unnamed: 2": "z", "a.1": None},
        {"a": "y", "b": 2, "Unnamed: 2": None, "a.1": "q"},
    ]


def test_a_cell_may_be_long_and_the_processs_limit_stays(tmp_path):
    before = csv.field_size_limit()
    assert len(rows_of(tmp_path / "t.csv", f"a,b\n{'x' * 200_000},1\n")[0]["a"]) == 2e5
    assert csv.field_size_limit() == before


def test_files_with_other_columns_are_an_error(tmp_path):
    one, two = (table(tmp_path / f"{n}.csv", f"{n},label\nx,1\n") for n in "ab")
    with refused("b.csv has the columns b, label; expected a,"):
        read_table([one, two])


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_folders_and_files_may_have_brackets(tmp_path, kind):
    folder = tmp_path / "runs [1]" / "d*"
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    path = inputs.write(folder / f"train[x].{kind}", rows)
    assert load(tmp_path, train_file=path).splits["train"].to_list() == rows
    for split in ("train", "validation_matched", "test_matched"):
        path.unlink()
        path = inputs.write(folder / f"{split}.{kind}", rows)
        data = load(tmp_path, dataset_name=folder)
        assert data.splits[split.removesuffix("_matched")].to_list() == rows


def test_what_a_folder_says_of_itself_counts(tmp_path):
    folder = tmp_path / "set"
    table(folder / "train.csv", "text;label\nnull;0\nNA;1\n")
    configs = "configs:\n- config_name: default\n  data_files: train.csv\n  sep: ';'\n"
    table(folder / "README.md", f"---\n{configs}---\n")
    rows = load(tmp_path, dataset_name=folder).splits["train"].to_list()
    assert rows == [{"text": "null", "label": 0}, {"text": "NA", "label": 1}]
