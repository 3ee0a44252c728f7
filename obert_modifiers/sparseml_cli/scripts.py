"""SparseML's console scripts, by name."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGE = "sparseml"


@dataclass(frozen=True)
class Script:
    """A function that SparseML has for the command line.

    Attributes:
        name: Name of the console script, or of the module.
        module: Module that holds the function.
        function: Name of the function.
    """

    name: str
    module: str
    function: str

    def load(self) -> Callable[[], Any]:
        """Import the function.

        Returns:
            It.
        """
        return getattr(import_module(self.module), self.function)


def scripts() -> dict[str, Script]:
    """List SparseML's console scripts as they are installed; imports nothing.

    Returns:
        Scripts by name.

    Raises:
        ValueError: If SparseML is not installed.
    """
    try:
        found = metadata.distribution(_PACKAGE).entry_points
    except metadata.PackageNotFoundError:
        raise ValueError(
            "sparseml is not installed; expected sparseml 1.8.0; `obert doctor` says "
            "how to get it"
        ) from None
    return {
        one.name: Script(one.name, one.module, one.attr)
        for one in found
        if one.group == "console_scripts" and one.name.startswith(f"{_PACKAGE}.")
    }


def find_script(name: str) -> Script:
    """Find a console script, or a module of SparseML with a ``main``.

    Args:
        name: Such as ``sparseml.transformers.train.question_answering``.

    Returns:
        The script.

    Raises:
        ValueError: If there is none of this name.
    """
    known = scripts()
    if name in known:
        return known[name]
    if name.startswith(f"{_PACKAGE}.") and _is_module(name):
        return Script(name, name, "main")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    hint = f"use {near[0]}" if near else "choose one"
    raise ValueError(
        f"script={name} is not one of SparseML's; expected one of these; {hint}\n"
        + "\n".join(f"  {one}" for one in sorted(known))
    )


def _is_module(name: str) -> bool:
    # Not find_spec(name), which imports the packages above it.
    top, *rest = name.split(".")
    spec = find_spec(top)
    folders = (spec.submodule_search_locations or []) if spec else []
    return any(Path(one, *rest).with_suffix(".py").is_file() for one in folders)
