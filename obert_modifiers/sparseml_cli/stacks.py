"""The sets of versions that work together, and what is missing from one."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

Versions = Mapping[str, str | None]

_SPARSEML = {"sparseml": ">=1.8,<1.9", "sparsezoo": ">=1.8,<1.9"}


@dataclass(frozen=True)
class Stack:
    """A set of versions that was tested together; `install` makes it in a checkout."""

    key: str
    what: str
    python: str
    packages: Mapping[str, str]
    install: str


STACKS = {
    "A": Stack(
        "A",
        "obert train with SparseML",
        ">=3.11,<3.12",
        {
            **_SPARSEML,
            "torch": ">=2.6,<3",
            "transformers": ">=5,<6",
            "datasets": ">=4,<6",
            "accelerate": ">=1.10,<2",
            "numpy": ">=1.26,<2",
            "onnx": ">=1.14,<2",
            "pyarrow": ">=24,<26",
            "setuptools": "<81",
        },
        "make install PYTHON=python3.11",
    ),
    "B": Stack(
        "B",
        "SparseML's own scripts, by obert run",
        ">=3.11,<3.12",
        {
            **_SPARSEML,
            "torch": ">=2.6,<3",
            "transformers": ">=4.40,<4.41",
            "datasets": ">=2.18,<2.19",
            "accelerate": ">=0.30,<1",
            "compressed-tensors": "==0.5.0",
            "numpy": ">=1.26,<2",
            "onnx": ">=1.14,<1.15",
            "pyarrow": ">=15,<20",
            "setuptools": "<81",
        },
        "make install-sparseml-cli",
    ),
    "C": Stack(
        "C",
        "obert train without SparseML",
        ">=3.11,<3.15",
        {
            "torch": ">=2.6,<3",
            "transformers": ">=5,<6",
            "datasets": ">=4,<6",
            "accelerate": ">=1.10,<2",
            "numpy": ">=1.26,<3",
            "onnx": ">=1.14,<2",
            "pyarrow": ">=15",
        },
        "make install PYTHON=python3.13",
    ),
}


@dataclass(frozen=True)
class Fault:
    """A package, or ``python``, that is not as a stack has it."""

    package: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        found = self.found or "not installed"
        return f"{self.package}={found}; expected {self.wanted.lstrip('=')}"


@dataclass(frozen=True)
class Diagnosis:
    """Which stack an environment is, and what is wrong with it.

    `stack` is None where it is none; `nearest` is what the faults are counted against;
    `command` mends them.
    """

    stack: str | None
    nearest: str
    versions: Versions
    faults: tuple[Fault, ...]
    command: str


def installed_versions() -> dict[str, str | None]:
    """Look up the version of every package of the stacks, and of ``python``."""
    names = sorted({name for stack in STACKS.values() for name in stack.packages})
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def diagnose(versions: Versions, wanted: str | None = None) -> Diagnosis:
    """Say which stack some versions are, what is wrong, and how it is mended.

    Against the `wanted` stack, or where that is None the nearest.
    """
    if wanted is not None and wanted not in STACKS:
        raise ValueError(
            f"stack={wanted} is unknown; expected one of {', '.join(STACKS)}; write "
            "one of them"
        )
    key = wanted or _nearest(versions)
    faults = faults_of(versions, STACKS[key])
    return Diagnosis(
        stack=None if faults else key,
        nearest=key,
        versions=versions,
        faults=faults,
        command=_command(faults, STACKS[key]),
    )


def _nearest(versions: Versions) -> str:
    if not versions.get("sparseml") or _fits(versions.get("python"), ">=3.12"):
        return "C"
    if _fits(versions.get("transformers"), STACKS["B"].packages["transformers"]):
        return "B"
    return "A"


def faults_of(versions: Versions, stack: Stack) -> tuple[Fault, ...]:
    """List what is not as a stack has it, Python first."""
    rows = {"python": stack.python, **stack.packages}
    return tuple(
        Fault(name, versions.get(name), wanted)
        for name, wanted in rows.items()
        if not _fits(versions.get(name), wanted)
    )


def _fits(version: str | None, wanted: str) -> bool:
    if version is None:
        return False
    try:
        return Version(version) in SpecifierSet(wanted, prereleases=True)
    except InvalidVersion:
        return False


def _command(faults: tuple[Fault, ...], stack: Stack) -> str:
    """Return the one command that mends all faults, empty where there are none."""
    if not faults:
        return ""
    if any(fault.package == "python" for fault in faults):
        return new_environment(stack)
    words = [f"'{fault.package}{fault.wanted}'" for fault in faults]
    return f"python -m pip install {' '.join(words)}"


def new_environment(stack: Stack) -> str:
    """Name the command that makes an environment of a stack.

    A make target in a checkout, else pip in a new environment.
    """
    root = Path(__file__).resolve().parents[2]
    if (root / "Makefile").is_file() and (root / "tools" / "venv.sh").is_file():
        return stack.install
    extra = "[sparseml-cli]" if stack.key == "B" else ""
    folder = f".venv-{stack.key.lower()}"
    python = "python3.13" if stack.key == "C" else "python3.11"
    return (
        f"{python} -m venv {folder} && "
        f"{folder}/bin/python -m pip install 'obert-modifiers{extra}'"
    )


# Without these, SparseML's scripts for transformers cannot be imported.
_NEEDED = ("python", "sparseml", "transformers", "datasets", "compressed-tensors")


def check_can_run(module: str, versions: Versions | None = None) -> None:
    """Raise if one of SparseML's scripts cannot be imported, with what mends it."""
    if not module.startswith("sparseml.transformers"):
        return
    stack = STACKS["B"]
    faults = faults_of(installed_versions() if versions is None else versions, stack)
    fatal = [str(fault) for fault in faults if fault.package in _NEEDED]
    if fatal:
        raise ValueError(
            f"{'; '.join(fatal)}: SparseML's own scripts need an environment of their "
            f"own (stack B); make it with: {new_environment(stack)}"
        )


# Without these, the tasks of `obert train` cannot be imported.
_TRAINING = ("transformers", "datasets", "accelerate")


def check_can_train(versions: Versions | None = None) -> None:
    """Raise if `obert train` lacks versions that it needs, with what mends it."""
    versions = installed_versions() if versions is None else versions
    key = _nearest(versions)
    stack = STACKS["C" if key == "C" else "A"]
    faults = faults_of(versions, stack)
    fatal = [str(fault) for fault in faults if fault.package in _TRAINING]
    if fatal:
        raise ValueError(
            f"{'; '.join(fatal)}: obert train needs stack {stack.key}; make it with: "
            f"{new_environment(stack)}"
        )
