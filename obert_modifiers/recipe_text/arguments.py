"""Read ``recipe_args``: values for a recipe's variables, given from outside."""

import json
import re
from collections.abc import Mapping
from typing import Any

_PAIR = re.compile(r"\s*([^=:\s{}!]+)\s*[=:](.*)", re.DOTALL)


def parse_recipe_args(recipe_args: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Read values for a recipe's variables, in each form that SparseML takes."""
    if not recipe_args:
        return {}
    if isinstance(recipe_args, Mapping):
        return {str(name): value for name, value in recipe_args.items()}
    if not isinstance(recipe_args, str):
        raise TypeError(
            f"recipe_args={recipe_args!r} is a {type(recipe_args).__name__}; expected "
            "a dict, a JSON object or name=value pairs; use one of them"
        )
    if recipe_args.lstrip().startswith("{"):
        try:
            return json.loads(recipe_args)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"recipe_args={recipe_args} is not valid JSON ({error}); expected an "
                "object such as '{\"num_epochs\": 3}'; correct it"
            ) from error
    values: dict[str, Any] = {}
    for item in recipe_args.split(","):
        pair = _PAIR.fullmatch(item)
        if not pair or pair[1] in values:
            what = "is given twice" if pair else "is not of the form name=value"
            raise ValueError(
                f"recipe_args item {item.strip()!r} {what}; expected name=value pairs "
                "separated by commas; use a JSON object for lists"
            )
        values[pair[1]] = _scalar(pair[2].strip())
    return values


def _scalar(text: str) -> Any:
    word = text.lower() if text.lower() in ("true", "false", "null") else text
    for read in (json.loads, float):
        try:
            return read(word)
        except ValueError:
            continue
    return text
