"""Write values and modifiers as YAML that reads back as the same values."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes plain values without aliases, others as what their text says in YAML."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        style = '"' if "\n" in data else None  # several lines become one
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)

    def represent_other(self, data: Any) -> yaml.Node:
        return self.represent_data(yaml.safe_load(str(data)))  # SparseML's objects


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
# The base class refuses what it does not know; that entry has to be replaced.
_Dumper.add_representer(None, _Dumper.represent_other)


def flow(value: Any) -> str:
    """Write a value on one line, so that it can stand anywhere in a recipe."""
    # Inside a list a text is quoted wherever it may need to be; alone it is not.
    options = {"default_flow_style": True, "sort_keys": False, "allow_unicode": True}
    text = yaml.dump([value], Dumper=_Dumper, width=math.inf, **options)
    return text.strip()[1:-1]


def modifiers_text(
    groups: Mapping[str, Iterable[tuple[str, Mapping[str, Any]]]], staged: bool
) -> str:
    """Write a recipe from the names and values of its modifiers, by stage."""
    lines: list[str] = []
    for stage, modifiers in groups.items():
        head = [f"{flow(stage)}:", f"  {stage}_modifiers:"]
        lines += head if staged else ["modifiers:"]
        for name, values in modifiers:
            lines.append(f"    - !{name}")
            lines += [f"      {key}: {flow(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"
