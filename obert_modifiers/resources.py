"""Find the recipes that are shipped with the package."""

import difflib
from itertools import takewhile
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """List the shipped recipes, without ``.yaml``."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Find a shipped recipe, in a checkout and in an installed wheel.

    The name may end in ``.yaml``.
    """
    stem = name.removesuffix(".yaml")
    names = recipe_names()
    if stem not in names:
        near = difflib.get_close_matches(stem, names) or names
        raise FileNotFoundError(
            f"recipe={name!r} is not shipped; expected one of the recipes in {RECIPES};"
            f" use {', '.join(near) or 'a path to a file'}"
        )
    return RECIPES / f"{stem}.yaml"


def recipe_setup(name: str) -> dict[str, Any]:
    """Read what a shipped recipe's header says of the runs that it stands for.

    Returns:
        ``table``, which rows of which tables they are; ``student`` and ``teacher``, or
        lists of them: a model, ``none``, ``self``, or a recipe that makes it, which may
        be followed by ``of`` and the model that it starts from; ``tasks``, each of
        which is a run; ``data`` where these are data sets of one run; ``tokens``,
        ``stride`` (of questions) and ``batch``, or these by task, with ``others``;
        ``seeds``, how many; ``grid``, the values of recipe variables.
    """
    import yaml  # which a plain installation has not

    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    lines = lines[lines.index("# Setup:") + 1 :]
    setup = takewhile(lambda line: line.startswith("#   "), lines)
    return yaml.safe_load("\n".join(line.removeprefix("#") for line in setup))
