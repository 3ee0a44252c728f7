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
_NO_DEPS = tuple(_SPARSEML)  # on Python 3.12 and later


@dataclass(frozen=True)
class Stack:
    """A set of versions that was tested together.

    Attributes:
        key: ``A``, ``B`` or ``C``.
        what: What it is for.
        python: Versions of Python.
        packages: Versions of packages.
        install: The command that makes an environment of it, in a checkout.
    """

    key: str
    what: str
    python: str
    packages: Mapping[str, str]
    install: str


STACKS = {
    "A": Stack(
        "A",
        "obert train, with today's transformers",
        ">=3.10,<3.12",
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
        "make install",
    ),
    "B": Stack(
        "B",
        "SparseML's own scripts, by obert run",
        ">=3.10,<3.12",
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
        "obert train on Python 3.12 and later",
        ">=3.12,<3.14",
        {
            **_SPARSEML,
            "torch": ">=2.6,<3",
            "transformers": ">=5,<6",
            "datasets": ">=4,<6",
            "accelerate": ">=1.10,<2",
            "numpy": ">=1.26,<3",
            "onnx": ">=1.15,<1.18",
            "pydantic": ">=2,<3",
            "setuptools": "<81",
        },
        "make install PYTHON=python3.12",
    ),
}


@dataclass(frozen=True)
class Fault:
    """A package that is not as a stack has it.

    Attributes:
        package: Its name, or ``python``.
        found: The version that is installed, or None.
        wanted: The versions of the stack.
    """

    package: str
    found: str | None
    wanted: str

    def __str__(self) -> str:
        """Return what is wrong, in one line."""
        found = self.found or "not installed"
        return f"{self.package}={found}; expected {self.wanted.lstrip('=')}"


@dataclass(frozen=True)
class Diagnosis:
    """Which stack an environment is, and what is wrong with it.

    Attributes:
        stack: The stack, or None where it is none.
        nearest: The stack that the faults are counted against.
        versions: The versions that were looked at, by package.
        faults: What is not as the nearest stack has it.
        command: The one command that mends it; empty where nothing is wrong.
    """

    stack: str | None
    nearest: str
    versions: Versions
    faults: tuple[Fault, ...]
    command: str


def installed_versions() -> dict[str, str | None]:
    """Look the versions up, without importing anything.

    Returns:
        Version by package, None where it is not installed; ``python`` among them.
    """
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

    Args:
        versions: As from :func:`installed_versions`.
        wanted: The stack that they should be; None for the one that is nearest.

    Returns:
        The diagnosis.

    Raises:
        ValueError: If there is no such stack.
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
    if _fits(versions.get("python"), STACKS["C"].python):
        return "C"
    if _fits(versions.get("transformers"), STACKS["B"].packages["transformers"]):
        return "B"
    return "A"


def faults_of(versions: Versions, stack: Stack) -> tuple[Fault, ...]:
    """List what is not as a stack has it.

    Args:
        versions: Version by package.
        stack: The stack.

    Returns:
        The faults, Python's first.
    """
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
    if stack.key != "C":
        return f"python -m pip install {' '.join(words)}"
    alone = [w for f, w in zip(faults, words, strict=True) if f.package in _NO_DEPS]
    others = [w for w in words if w not in alone]
    parts = [f"python -m pip install {' '.join(others)}"] if others else []
    if alone:
        flags = "--no-deps --ignore-requires-python"
        parts.append(f"python -m pip install {flags} {' '.join(alone)}")
    return " && ".join(parts)


def new_environment(stack: Stack) -> str:
    """Name the command that makes an environment of a stack.

    Args:
        stack: The stack.

    Returns:
        A make target in a checkout, else pip in a new environment.
    """
    root = Path(__file__).resolve().parents[2]
    if (root / "Makefile").is_file() and (root / "tools" / "venv.sh").is_file():
        return stack.install
    extra = "[sparseml-cli]" if stack.key == "B" else ""
    folder = f".venv-{stack.key.lower()}"
    python = "python3.12" if stack.key == "C" else "python3.11"
    return (
        f"{python} -m venv {folder} && "
        f"{folder}/bin/python -m pip install 'obert-modifiers{extra}'"
    )


# Without these, SparseML's scripts for transformers cannot be imported.
_NEEDED = ("python", "sparseml", "transformers", "datasets", "compressed-tensors")


def check_can_run(module: str, versions: Versions | None = None) -> None:
    """Check that one of SparseML's scripts can be imported.

    Args:
        module: Name of the module that holds it.
        versions: Version by package; None looks them up.

    Raises:
        ValueError: If it cannot; with the command that mends it.
    """
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
    """Check that ``obert train`` has the versions that it needs.

    Args:
        versions: Version by package; None looks them up.

    Raises:
        ValueError: If it has not; with the command that mends it.
    """
    versions = installed_versions() if versions is None else versions
    newer = _fits(versions.get("python"), STACKS["C"].python)
    stack = STACKS["C" if newer else "A"]
    faults = faults_of(versions, stack)
    fatal = [str(fault) for fault in faults if fault.package in _TRAINING]
    if fatal:
        raise ValueError(
            f"{'; '.join(fatal)}: obert train needs stack {stack.key}; make it with: "
            f"{new_environment(stack)}"
        )
