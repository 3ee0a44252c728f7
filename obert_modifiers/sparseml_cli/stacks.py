"""The sets of versions that work together, and what is missing from one."""

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

Versions = Mapping[str, str | None]

# What stacks A, B and C need of each, None for nothing.
_VERSIONS = {
    "python": (">=3.11,<3.12", ">=3.11,<3.12", ">=3.11,<3.15"),
    "sparseml": (">=1.8,<1.9", ">=1.8,<1.9", None),
    "sparsezoo": (">=1.8,<1.9", ">=1.8,<1.9", None),
    "torch": (">=2.6,<3", ">=2.6,<3", ">=2.6,<3"),
    "transformers": (">=5,<6", ">=4.40,<4.41", ">=5,<6"),
    "datasets": (">=4,<6", ">=2.18,<2.19", ">=4,<6"),
    "accelerate": (">=1.10,<2", ">=0.30,<1", ">=1.10,<2"),
    "compressed-tensors": (None, "==0.5.0", None),
    "numpy": (">=1.26,<2", ">=1.26,<2", ">=1.26,<3"),
    "onnx": (">=1.14,<2", ">=1.14,<1.15", ">=1.14,<2"),
    "pyarrow": (">=24,<26", ">=15,<20", ">=15"),
    "setuptools": ("<81", "<81", None),
}


@dataclass(frozen=True)
class Stack:
    """A set of versions that was tested together; `install` makes it in a checkout."""

    key: str
    what: str
    install: str

    @property
    def packages(self) -> dict[str, str]:
        """What it needs, Python first."""
        place = list(STACKS).index(self.key)
        found = {name: wanted[place] for name, wanted in _VERSIONS.items()}
        return {name: wanted for name, wanted in found.items() if wanted is not None}


_ALL = (
    Stack("A", "obert train with SparseML", "make install PYTHON=python3.11"),
    Stack("B", "SparseML's own scripts, by obert run", "make install-sparseml-cli"),
    Stack("C", "obert train without SparseML", "make install PYTHON=python3.13"),
)
STACKS = {stack.key: stack for stack in _ALL}


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
    """Which stack an environment is, and what is wrong with it."""

    stack: str | None  # None where it is none
    nearest: str  # what the faults are counted against
    versions: Versions
    faults: tuple[Fault, ...]
    command: str  # mends them


def installed_versions() -> dict[str, str | None]:
    """Look up the version of every package of the stacks, and of ``python``."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in sorted(set(_VERSIONS) - set(found)):
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
    faults = _faults(versions, STACKS[key])
    command = _command(faults, STACKS[key])
    return Diagnosis(None if faults else key, key, versions, faults, command)


def _nearest(versions: Versions) -> str:
    if not versions.get("sparseml") or _fits(versions.get("python"), ">=3.12"):
        return "C"
    if _fits(versions.get("transformers"), STACKS["B"].packages["transformers"]):
        return "B"
    return "A"


def _faults(versions: Versions, stack: Stack) -> tuple[Fault, ...]:
    return tuple(
        Fault(name, versions.get(name), wanted)
        for name, wanted in stack.packages.items()
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
        return _new_environment(stack)
    words = [f"'{fault.package}{fault.wanted}'" for fault in faults]
    return f"python -m pip install {' '.join(words)}"


def _new_environment(stack: Stack) -> str:
    """Name a make target in a checkout, else pip in a new environment."""
    root = Path(__file__).resolve().parents[2]
    if (root / "Makefile").is_file() and (root / "tools" / "venv.sh").is_file():
        return stack.install
    extra = "sparseml-cli" if stack.key == "B" else "train"
    folder = f".venv-{stack.key.lower()}"
    python = "python3.13" if stack.key == "C" else "python3.11"
    return (
        f"{python} -m venv {folder} && "
        f"{folder}/bin/python -m pip install 'obert-modifiers[{extra}]'"
    )


def check_can_run(module: str, versions: Versions | None = None) -> None:
    """Raise if one of SparseML's scripts cannot be imported, with what mends it."""
    if module.startswith("sparseml.transformers"):
        needed = (
            "python",
            "sparseml",
            "transformers",
            "datasets",
            "compressed-tensors",
        )
        what = "SparseML's own scripts need an environment of their own (stack B)"
        _check(needed, what, STACKS["B"], versions or installed_versions())


def check_can_train(versions: Versions | None = None) -> None:
    """Raise if `obert train` lacks versions that it needs, with what mends it."""
    versions = versions or installed_versions()
    stack = STACKS["C" if _nearest(versions) == "C" else "A"]
    needed = ("transformers", "datasets", "accelerate")
    _check(needed, f"obert train needs stack {stack.key}", stack, versions)


def _check(
    needed: Collection[str], what: str, stack: Stack, versions: Versions
) -> None:
    faults = [one for one in _faults(versions, stack) if one.package in needed]
    if faults:
        raise ValueError(
            f"{'; '.join(map(str, faults))}: {what}; make it with: "
            f"{_new_environment(stack)}"
        )
