"""SparseML's console scripts, by name."""

import difflib
from importlib import metadata
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

_GROUP = "console_scripts"


def scripts() -> dict[str, EntryPoint]:
    """List SparseML's console scripts as they are installed; imports nothing."""
    try:
        found = metadata.distribution("sparseml").entry_points
    except metadata.PackageNotFoundError:
        raise ValueError(
            "sparseml is not installed; expected sparseml 1.8.0; `obert doctor` says "
            "how to get it"
        ) from None
    of_group = [one for one in found if one.group == _GROUP]
    return {one.name: one for one in of_group if one.name.startswith("sparseml.")}


def find_script(name: str) -> EntryPoint:
    """Find a console script, or a module of SparseML with a ``main``."""
    known = scripts()
    if name in known:
        return known[name]
    if name.startswith("sparseml.") and _is_module(name):
        return EntryPoint(name, f"{name}:main", _GROUP)
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
