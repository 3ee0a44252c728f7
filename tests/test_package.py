"""The package as a whole: what importing it costs, what ships, what it never holds."""

import ast
import configparser
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import obert_modifiers
from obert_modifiers import resources

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "obert_modifiers"
TEXT = {
    ".cfg", ".ini", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml",
}  # fmt: skip
NAMES = {"Makefile", "run", "NOTICE"}


def loaded_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh process loads for a statement."""
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def repository_files() -> list[Path]:
    """Return every text file of the checkout that is not generated."""
    command = "git ls-files --cached --others --exclude-standard".split()
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [REPO / name for name in listed.stdout.splitlines()]
    files = [file for file in files if file.suffix in TEXT or file.name in NAMES]
    return [file for file in files if file.is_file()]


def test_importing_the_package_is_light():
    loaded = loaded_after("import obert_modifiers")
    assert "obert_modifiers" in loaded
    assert not loaded & {"numpy", "torch", "sparseml", "transformers", "yaml"}


def test_kernels_and_core_need_no_host():
    loaded = loaded_after("import obert_modifiers.core, obert_modifiers.kernels")
    assert "obert_modifiers" in loaded
    assert not loaded & {"accelerate", "sparseml", "sparsezoo", "transformers", "yaml"}
    assert not loaded & {"numba", "triton"}


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        obert_modifiers.no_such_name  # noqa: B018


def test_public_names_are_found_lazily():
    from obert_modifiers.recipe import manager

    assert obert_modifiers.RecipeManager is manager.RecipeManager
    assert obert_modifiers.RecipeError is manager.RecipeError
    assert {"RecipeManager", "RecipeError"} <= set(dir(obert_modifiers))


def test_version_is_one_in_all_places():
    config = configparser.ConfigParser(interpolation=None)
    config.read(REPO / "setup.cfg")
    attribute = config["metadata"]["version"].removeprefix("attr:").strip()
    assert attribute == "obert_modifiers.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", obert_modifiers.__version__)


def test_shipped_recipes_are_those_of_the_recipes_folder():
    names = sorted(path.stem for path in (REPO / "recipes").glob("*.yaml"))
    assert names and resources.recipe_names() == names
    quickstart = REPO / "recipes/quickstart.yaml"
    assert resources.recipe_path("quickstart").samefile(quickstart)
    assert resources.recipe_path("quickstart.yaml").is_file()


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(FileNotFoundError, match="'quickstrt'.*use quickstart"):
        resources.recipe_path("quickstrt")


def test_embedded_data_keeps_its_licence_and_bytes():
    folder = PACKAGE / "embedded_data" / "movie_snippets"
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert "Copyright (c) 2016 C.J. Hutto" in licence
    assert "Permission is hereby granted, free of charge" in licence
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in folder.glob("*.parquet")
    }
    assert digests == {
        "train.parquet": "20094d6f369de012",
        "validation.parquet": "dd6ab5e2e33c276d",
    }


def test_no_file_holds_an_absolute_machine_path():
    pattern = re.compile(r"(?<![\w.:/<$}])/(?:home|root|tmp|work|Users|opt|mnt)/\w")
    assert pattern.search('open("/home/someone/x")')  # a planted path is found
    files = repository_files()
    assert len(files) > 20
    found = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line) and path.name != Path(__file__).name
    ]
    assert not found, "\n".join(found)


def left_overs(path: str, source: str) -> list[str]:
    """Return calls of print and marks of unfinished work in a source."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if getattr(call.func, "id", "") == "print"]
    lines = enumerate(source.splitlines(), start=1)
    marks = [n for n, line in lines if re.search(r"\b(TODO|FIXME|XXX)\b", line)]
    return [f"{path}:{number}" for number in prints + marks]


def test_no_print_and_no_unfinished_mark():
    assert len(left_overs("planted", "print(1)\n# TODO later\n")) == 2
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    found = [
        item
        for path in files
        for item in left_overs(str(path.relative_to(REPO)), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)
