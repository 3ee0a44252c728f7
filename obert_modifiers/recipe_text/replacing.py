"""Modifiers that stand in for others: found by tag, and written into a recipe's text.

A tag is replaced where the constructor that YAML knows for it carries a function
``translate``; :mod:`obert_modifiers.compat.replace` puts such constructors there.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.recipe_text.outline import ModifierNode
from obert_modifiers.recipe_text.writing import flow

_TAG_PREFIX = "!pytorch."
_ALIAS = re.compile(r"\s*:[ ]+([*][^\s,\[\]{}]+)[ ]*(?=$|#)", re.MULTILINE)


@dataclass
class Translated:
    """A modifier of an old recipe in the keys of one of ours.

    Attributes:
        name: The modifier that stands in.
        values: Value by key of that modifier.
        origin: Key of the old recipe by key of that modifier, where there is one.
        comments: What is to be said about a key of that modifier, in the recipe.
        left_out: Keys of the old recipe that have no counterpart, and why.
        changes: What means something else now, by keys of the old recipe.
        faults: What is wrong with the old recipe, by its keys.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    changes: list[Fault] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


Translate = Callable[[Mapping[str, Any]], Translated]


def translation_of(name: str) -> Translate | None:
    """Find what stands in for a modifier."""
    constructor = yaml.SafeLoader.yaml_constructors.get(f"{_TAG_PREFIX}{name}")
    return getattr(constructor, "translate", None)


def old_layer_numbers(
    found: Sequence[Translated | None], values: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, Fault]]:
    """Find patterns that name layers by numbers which dropping layers changes."""
    dropped = [one.values["drop"][0] for one in found if one and "drop" in one.values]
    lists = {str(name).split(".")[-2] for name in dropped if "." in str(name)}
    for place, (one, keys) in enumerate(zip(found, values, strict=True)):
        if not lists or (one and "drop" in one.values):
            continue
        for key, value in keys.items():
            for text in _texts(value):
                plain = text.replace("\\", "")
                if any(re.search(rf"{name}[.][\d(\[]", plain) for name in lists):
                    yield (
                        place,
                        Fault.of(
                            Rule.LAYERS,
                            key,
                            text,
                            "names layers by number, and those that "
                            "LayerPruningModifier leaves are numbered from 0 here",
                            "a pattern for all layers",
                            "write .* in the place of the number, or drop the layers "
                            "with LayerDropModifier and write the new numbers",
                        ),
                    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _texts(name)
            yield from _texts(below)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def rewritten(
    text: str,
    modifiers: Sequence[tuple[ModifierNode, Translated | None]],
    values: Sequence[Mapping[str, Any]],
) -> str:
    """Write the modifiers that stand in into a recipe, with a comment on each change.

    A value that stayed the same is written as it was, so that ``eval(...)`` stays.
    """
    edits = []
    for (modifier, found), old in zip(modifiers, values, strict=True):
        if found is not None:
            start, end = _span(text, modifier.node)
            edits.append((start, end, _block(text, modifier, found, old)))
    for start, end, block in sorted(edits, reverse=True):
        text = text[:start] + block + text[end:]
    return text


def _span(text: str, node: yaml.Node) -> tuple[int, int]:
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.ScalarNode):
        return start, max(end, start + len(node.tag))
    if node.flow_style:
        return start, end
    # A block ends where the next thing begins; comments before that are not its own.
    lines = text[start:end].split("\n")
    while not lines[-1].strip() or lines[-1].lstrip().startswith("#"):
        lines.pop()
    return start, start + len("\n".join(lines).rstrip())


def _block(
    text: str, modifier: ModifierNode, found: Translated, old: Mapping[str, Any]
) -> str:
    node = modifier.node
    indent = " " * node.start_mark.column
    sources: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        if node.value and not node.flow_style:
            indent = " " * node.value[0][0].start_mark.column
        for key, value in node.value:
            alias = _ALIAS.match(text, key.end_mark.index)
            sources[str(key.value)] = alias[1] if alias else _source(text, value)
    lines = [f"!{found.name}  # was !{modifier.name}"]
    for key, why in found.left_out.items():
        if key in old:
            lines.append(f"{indent}# left out {key}: {flow(old[key])}; {why}")
    lines += [f"{indent}# changed: {change}" for change in found.changes]
    for key, value in found.values.items():
        theirs = found.origin.get(key, "")
        same = theirs in old and old[theirs] == value and sources.get(theirs)
        comment = found.comments.get(key, "")
        if not comment and theirs != key:
            comment = f"was {theirs}" if theirs else ""
        written = sources[theirs] if same else flow(value)
        lines.append(f"{indent}{key}: {written}{comment and f'  # {comment}'}")
    return "\n".join(lines)


def _source(text: str, node: yaml.Node) -> str:
    """Return how a value is written, if on one line and without an anchor or alias."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return ""
    written = text[node.start_mark.index : node.end_mark.index].strip()
    return "" if "\n" in written or written.startswith(("&", "*")) else written
