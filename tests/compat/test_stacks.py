"""`obert doctor`: made-up sets of versions, and the one command that mends each."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from obert_modifiers import cli
from obert_modifiers.sparseml_cli import stacks
from obert_modifiers.sparseml_cli.stacks import STACKS, check_can_run, diagnose

REPO = Path(__file__).parents[2]
A = {
    "python": "3.11.7",
    "sparseml": "1.8.0",
    "sparsezoo": "1.8.1",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "datasets": "5.2.0",
    "accelerate": "1.15.0",
    "compressed-tensors": None,
    "numpy": "1.26.4",
    "onnx": "1.14.1",
    "pyarrow": "25.0.1",
    "pydantic": "2.7.4",
    "setuptools": "80.10.2",
}
B = A | {
    "transformers": "4.40.2",
    "datasets": "2.18.0",
    "accelerate": "0.30.1",
    "compressed-tensors": "0.5.0",
    "pyarrow": "19.0.1",
}
C = A | {
    "python": "3.13.5",
    "sparseml": None,
    "sparsezoo": None,
    "numpy": "2.5.5",
    "onnx": "1.23.2",
    "pyarrow": "26.0.1",
    "pydantic": "2.14.4",
    "setuptools": "84.2.1",
}
SETS = {"A": A, "B": B, "C": C}


@pytest.mark.parametrize("key", STACKS)
def test_each_stack_is_known(key):
    found = diagnose(SETS[key])
    assert (found.stack, found.faults, found.command) == (key, (), "")
    assert set(SETS) == set(STACKS)


# What is changed in a stack, to which it stays the nearest; and what mends it.
BROKEN = [
    ("A", {"transformers": "4.50.0"}, "'transformers>=5,<6'"),
    ("A", {"sparsezoo": None}, "'sparsezoo>=1.8,<1.9'"),
    ("A", {"sparseml": "1.9.0"}, "'sparseml>=1.8,<1.9'"),
    ("A", {"setuptools": "82.0.0"}, "'setuptools<81'"),
    ("A", {"numpy": "2.4.0"}, "'numpy>=1.26,<2'"),
    ("A", {"torch": "not a version"}, "'torch>=2.6,<3'"),
    ("B", {"datasets": "5.2.0"}, "'datasets>=2.18,<2.19'"),
    (
        "B",
        {"compressed-tensors": "0.6.0", "pyarrow": "25.0.1"},
        "'compressed-tensors==0.5.0' 'pyarrow>=15,<20'",
    ),
    ("C", {"numpy": "1.25.2"}, "'numpy>=1.26,<3'"),
    ("C", {"datasets": "2.18.0", "onnx": None}, "'datasets>=4,<6' 'onnx>=1.14,<2'"),
]


@pytest.mark.parametrize(("key", "change", "words"), BROKEN)
def test_what_is_broken_and_what_mends_it(key, change, words):
    broken = SETS[key] | change
    found = diagnose(broken)
    assert found.stack is None
    assert found.nearest == key
    assert [fault.package for fault in found.faults] == [*change]
    assert found.command == f"python -m pip install {words}"
    newest = {"transformers": "5.23.0", "datasets": "5.2.0"}
    if key == "B":
        newest = {"datasets": "2.18.0"}
    candidates = {**SETS[key], **newest}
    for text in re.findall(r"'([^']+)'", found.command):
        one = Requirement(text)
        assert one.specifier.contains(candidates[one.name], prereleases=True)
        broken[one.name] = candidates[one.name]
    assert diagnose(broken).stack == key


@pytest.mark.parametrize("python", ["3.11.7", "3.12.1", "3.13.5", "3.14.0"])
def test_sparseml_is_no_fault_where_it_is_missing(python):
    assert diagnose(C | {"python": python}).stack == "C"
    assert diagnose(A | {"python": python, "sparseml": None}).stack == "C"
    found = diagnose(A | {"python": python}).stack
    assert found == ("A" if python == "3.11.7" else "C")


def test_another_stack_may_be_asked_for():
    found = diagnose(A, "B")
    assert found.stack is None
    assert "'transformers>=4.40,<4.41'" in found.command
    with pytest.raises(ValueError, match="stack=D is unknown; expected one of A, B, C"):
        diagnose(A, "D")


def test_another_python_needs_a_new_environment(monkeypatch, tmp_path):
    for base, python in ((A, "3.11"), (C, "3.13")):
        command = diagnose(base | {"python": "3.10.13"}).command
        assert command == f"make install PYTHON=python{python}"
    assert diagnose(C, "B").command == "make install-sparseml-cli"
    installed = tmp_path / "site-packages" / "obert_modifiers" / "compat" / "stacks.py"
    monkeypatch.setattr(stacks, "__file__", str(installed))
    assert diagnose(C, "B").command == (
        "python3.11 -m venv .venv-b && .venv-b/bin/python -m pip install "
        "'obert-modifiers[sparseml-cli]'"
    )
    assert diagnose(C | {"python": "3.10.13"}).command.endswith(
        "'obert-modifiers[train]'"
    )


def test_sparsemls_scripts_are_refused_with_the_command_that_mends_it():
    module = "sparseml.transformers.text_classification"
    check_can_run(module, B)
    check_can_run("sparseml.framework.info", A)
    with pytest.raises(ValueError) as error:
        check_can_run(module, A)
    assert str(error.value) == (
        "transformers=5.23.0; expected >=4.40,<4.41; datasets=5.2.0; expected "
        ">=2.18,<2.19; compressed-tensors=not installed; expected 0.5.0: SparseML's "
        "own scripts need an environment of their own (stack B); make it with: make "
        "install-sparseml-cli"
    )


def test_obert_train_is_refused_with_the_command_that_mends_it(monkeypatch, capsys):
    stacks.check_can_train(A)
    stacks.check_can_train(C)
    for base, python in ((A, "3.11"), (C, "3.13")):
        with pytest.raises(ValueError) as error:
            stacks.check_can_train(base | {"transformers": "4.50.0"})
        assert "transformers=4.50.0; expected >=5,<6" in str(error.value)
        made = f"make it with: make install PYTHON=python{python}"
        assert str(error.value).endswith(made)
    monkeypatch.setattr(stacks, "installed_versions", lambda: dict(B))
    for words in (["train", "text_classification", "--help"], ["quickstart"]):
        assert cli.main(words) == 2
        text = capsys.readouterr().err
        assert "transformers=4.40.2; expected >=5,<6" in text
        assert "obert train needs stack A; make it with: make install" in text


def requirements(section: str, name: str) -> dict[str, list[Requirement]]:
    config = configparser.ConfigParser(interpolation=None)
    config.read(REPO / "setup.cfg", encoding="utf-8")
    lines = config[section][name]
    for extra in re.findall(r"%\((.*)\)s", lines):
        lines = lines.replace(f"%({extra})s", config[section][extra])
    return by_package(lines)


def by_package(lines: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in lines.splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            found.setdefault(one.name, []).append(one)
    return found


def allowed(
    found: dict[str, list[Requirement]], name: str, python: str
) -> SpecifierSet:
    """Return what is said of a package on a version of Python."""
    on = {"python_version": ".".join(python.split(".")[:2])}
    on["python_full_version"] = python
    specifiers = SpecifierSet()
    for one in found.get(name, []):
        if one.marker is None or one.marker.evaluate(on):
            specifiers &= one.specifier
    return specifiers


@pytest.mark.parametrize("key", STACKS)
def test_setup_cfg_admits_each_stack(key):
    extra = "sparseml-cli" if key == "B" else "train"
    found = requirements("options.extras_require", extra)
    for name, more in requirements("options", "install_requires").items():
        found.setdefault(name, []).extend(more)
    python = SETS[key]["python"]
    for name, version in SETS[key].items():
        if name not in ("python", "compressed-tensors") and version:
            wanted = allowed(found, name, python)
            assert wanted.contains(version, prereleases=True), name


def test_the_extra_of_sparsemls_scripts_is_what_the_doctor_asks_for():
    config = requirements("options.extras_require", "sparseml-cli")
    train = requirements("options.extras_require", "train")
    for name, found in config.items():
        added = found[len(train.get(name, [])) :]
        for one in added:
            assert one.specifier == SpecifierSet(STACKS["B"].packages[name])


SPARSEMLS = {"sparseml", "sparsezoo", "pyarrow", "setuptools"}


def test_sparseml_and_its_pins_are_required_where_it_installs():
    found = requirements("options.extras_require", "train")
    extra = requirements("options.extras_require", "sparseml")
    own = {name: many[-1] for name, many in extra.items() if many != found.get(name)}
    assert set(own) == SPARSEMLS
    for name, one in own.items():
        bounds = set(one.specifier)
        assert bounds <= set(allowed(found, name, "3.11"))
        for python in ("3.12", "3.13", "3.14"):
            assert not bounds & set(allowed(found, name, python))
    assert not any("!=" in str(one) for many in found.values() for one in many)


def test_a_plain_installation_is_the_sparse_engine():
    found = requirements("options", "install_requires")
    assert set(found) == {"llvmlite", "numpy", "safetensors", "tokenizers"}
    extras = requirements("options.extras_require", "runtime")
    assert extras == {}


CONSTRAINTS = {
    "A": "constraints.txt",
    "B": "constraints-sparseml-cli.txt",
    "C": "constraints-python3.13.txt",
}


@pytest.mark.parametrize(("key", "file"), CONSTRAINTS.items())
def test_constraints_are_of_their_stack(key, file):
    python = SETS[key]["python"]
    found = by_package((REPO / file).read_text(encoding="utf-8"))
    pinned = {n.lower(): str(allowed(found, n, python)) for n in found}
    pinned = {n: one.removeprefix("==") for n, one in pinned.items() if one}
    assert all(Version(version) for version in pinned.values())
    found = diagnose({"python": python} | pinned)
    assert found.stack == key, found.faults


def test_doctor_prints_and_exits(capsys, monkeypatch):
    monkeypatch.setattr(stacks, "installed_versions", lambda: dict(A))
    assert cli.main(["doctor"]) == 0
    assert "stack A: obert train" in capsys.readouterr().out
    assert cli.main(["doctor", "--stack", "B"]) == 1
    text = capsys.readouterr().out
    assert "no stack; nearest is B" in text
    assert "broken: transformers=5.23.0; expected >=4.40,<4.41" in text
    assert "mend it with: python -m pip install 'transformers>=4.40,<4.41'" in text
    assert cli.main(["doctor", "--json", "--stack", "B"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["stack"] is None and report["nearest"] == "B"
    assert report["versions"]["transformers"] == "5.23.0"
    assert report["command"].startswith("python -m pip install")


HIDDEN = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Hide())
from obert_modifiers.cli import main
sys.exit(main(["recipe", sys.argv[2], "recipes/quickstart.yaml"]))
"""


def without(package: str, command: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", HIDDEN, package, command]
    return subprocess.run(words, cwd=REPO, capture_output=True, text=True)


def test_a_command_without_a_package_that_it_needs_names_the_doctor():
    done = without("transformers", "plan")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "obert: No module named 'transformers'; `obert doctor` says what mends it\n"
    )


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_command_needs_no_sparseml(command):
    done = without("sparseml", command)
    assert done.returncode == 0, done.stderr


def test_a_recipe_is_checked_without_torch():
    done = without("torch", "check")
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_command_names_it():
    done = without("typer", "check")
    assert done.returncode == 2
    assert done.stderr.endswith("run pip install 'obert-modifiers[train]'\n")
    assert "Traceback" not in done.stderr
