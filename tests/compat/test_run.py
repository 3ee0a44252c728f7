"""`obert run` up to where SparseML's script begins."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from obert_modifiers import cli
from obert_modifiers.sparseml_cli import launch, scripts, stacks
from obert_modifiers.sparseml_cli.fixes import EARLY, LATE, all_fixes, apply_fixes
from tests.hosts import on_sparseml

REPO = Path(__file__).parents[2]
TRAIN = "sparseml.transformers.train.text_classification"


@on_sparseml
@pytest.mark.parametrize(
    ("words", "replace", "without", "left"),
    [
        ([TRAIN, "--recipe", "r.yaml"], None, set(), ("--recipe", "r.yaml")),
        (["--replace", TRAIN, "--x"], "same", set(), ("--x",)),
        ([TRAIN, "--replace=ours", "--x"], "ours", set(), ("--x",)),
        (
            ["--without=resume-epoch,local-metrics", TRAIN],
            None,
            {"resume-epoch", "local-metrics"},
            (),
        ),
    ],
)
def test_our_words_are_parted_from_sparsemls(words, replace, without, left):
    request = launch.read_words(words)
    assert request.script.name == TRAIN
    assert request.script.module == "sparseml.transformers.text_classification"
    assert request.script.attr == "main"
    assert (request.replace, request.without) == (replace, without)
    assert request.words == left


@on_sparseml
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replace=theirs", TRAIN], "--replace=theirs is unknown"),
        (["--without=nothing", TRAIN], "--without=nothing is no fix; expected one of"),
        (["--recipe", "r.yaml"], "script=--recipe is missing"),
        ([], "script= is missing"),
        (["sparseml.transformers.train.text_clasification"], f"use {TRAIN}"),
        (["os"], "script=os is not one of SparseML's"),
        (["sparseml.transformers.nothing"], "is not one of SparseML's"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(ValueError) as error:
        launch.read_words(words)
    assert message in str(error.value)


@on_sparseml
def test_an_unknown_script_is_answered_with_the_list():
    with pytest.raises(ValueError) as error:
        scripts.find_script("sparseml.train")
    listed = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    assert f"  {TRAIN}" in listed
    assert "  sparseml.transformers.export_onnx" in listed
    assert len(listed) == len(scripts.scripts()) > 20


@on_sparseml
def test_modules_of_sparseml_are_scripts_too():
    found = scripts.find_script("sparseml.transformers.export")
    assert (found.module, found.attr) == ("sparseml.transformers.export", "main")
    # Another name of a console script.
    found = scripts.find_script("sparseml.transformers.text_classification")
    assert found.module == "sparseml.transformers.text_classification"


def test_without_sparseml_the_doctor_is_named(monkeypatch):
    def missing(name):
        raise scripts.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(scripts.metadata, "distribution", missing)
    with pytest.raises(ValueError, match="sparseml is not installed.*obert doctor"):
        scripts.find_script(TRAIN)


@on_sparseml
def test_run_without_words_lists_the_scripts(capsys):
    assert cli.main(["run"]) == 0
    text = capsys.readouterr().out
    assert f"  {TRAIN}" in text and "--without=FIX" in text


@on_sparseml
def test_in_another_stack_run_says_what_mends_it(capsys, monkeypatch):
    versions = stacks.installed_versions() | {"transformers": "5.23.0"}
    monkeypatch.setattr(stacks, "installed_versions", lambda: versions)
    assert cli.main(["run", TRAIN, "--help"]) == 2
    text = capsys.readouterr().err
    assert "transformers=5.23.0; expected >=4.40,<4.41" in text
    assert "make install-sparseml-cli" in text


@on_sparseml
@pytest.mark.slow
def test_a_script_that_needs_no_transformers_runs_in_any_stack(tmp_path):
    command = [sys.executable, "-m", "obert_modifiers.run", "sparseml.framework"]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert b"obert run: sparseml.framework; fixes: " in done.stderr
    assert b"--path" in done.stdout


def test_fixes_say_what_they_mend():
    found = all_fixes()
    assert len(found) == len({one.name for one in found}) == 11
    for one in found:
        assert one.mends.endswith(".") and len(one.mends) > 40
        assert one.versions
        assert one.when in (EARLY, LATE)
        assert one.scripts in ("sparseml", "sparseml.transformers")


@on_sparseml
def test_only_what_is_needed_is_applied(monkeypatch):
    put = []
    names = [
        one.name
        for one in apply_fixes(TRAIN, EARLY, patch=lambda *args: put.append(args))
    ]
    assert names == ["local-metrics"]  # pkg_resources is there
    assert [(owner.__name__, name) for owner, name, _ in put] == [
        ("datasets", "load_metric")
    ]
    assert not list(apply_fixes("sparseml.framework.info", EARLY))
    assert not list(apply_fixes(TRAIN, EARLY, without={"local-metrics"}))


def test_the_page_has_the_table_of_fixes():
    page = (REPO / "docs" / "sparseml_cli.md").read_text(encoding="utf-8")
    for one in all_fixes():
        assert f"| `{one.name}` | {one.mends} | {one.versions} |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    names = {row.split("`")[1] for row in rows}
    assert {one.name for one in all_fixes()} <= names


def test_the_page_has_the_versions_of_each_stack():
    page = (REPO / "docs" / "sparseml_cli.md").read_text(encoding="utf-8")
    for stack in stacks.STACKS.values():
        assert f"| {stack.key} | {stack.what} |" in page
        for name in ("transformers", "datasets", "accelerate"):
            assert f"{name} {stack.packages[name]}" in page
    assert json.dumps(sorted(stacks.STACKS)) == '["A", "B", "C"]'
