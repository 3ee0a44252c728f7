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
from obert_modifiers.recipe_text.values import ModifierSettings
from obert_modifiers.recipe_text.writing import flow

_TAG_PREFIX = "!pytorch."
_ALIAS = re.compile(r"\s*:[ ]+([*][^\s,\[\]{}]+)[ ]*(?=$|#)", re.MULTILINE)


@dataclass
class Translated:
    """A modifier of an old recipe in the keys of one of ours."""

    name: str  # of the modifier that stands in
    values: dict[str, Any] = field(default_factory=dict)  # by its keys
    origin: dict[str, str] = field(default_factory=dict)  # old key by its key
    comments: dict[str, str] = field(default_factory=dict)  # on its keys
    left_out: dict[str, str] = field(default_factory=dict)  # old keys, and why
    changes: list[Fault] = field(default_factory=list)  # of meaning, by old keys
    faults: list[Fault] = field(default_factory=list)  # of the old recipe


Translate = Callable[[Mapping[str, Any]], Translated]


def translation_of(name: str) -> Translate | None:
    """Find what stands in for a modifier."""
    constructor = yaml.SafeLoader.yaml_constructors.get(f"{_TAG_PREFIX}{name}")
    return getattr(constructor, "translate", None)


def old_layer_numbers(
    everyone: Sequence[ModifierSettings],
) -> Iterator[tuple[ModifierSettings, Fault]]:
    """Find patterns that name layers by numbers which dropping layers changes."""
    drops = [
        one for one in everyone if one.translated and "drop" in one.translated.values
    ]
    dropped = [str(one.translated.values["drop"][0]) for one in drops]
    lists = {name.split(".")[-2] for name in dropped if "." in name}
    wrong = "names layers by number, and those that LayerPruningModifier leaves are "
    wrong += (
        "numbered from 0 here; expected a pattern for all layers; write .* for the "
    )
    wrong += "number, or use LayerDropModifier and write the new numbers"
    for one in everyone:
        values = {} if one in drops else one.values
        for key, value in values.items():
            for text in texts_in(value):
                plain = text.replace("\\", "")
                if any(re.search(rf"{name}[.][\d(\[]", plain) for name in lists):
                    yield one, Fault(Rule.LAYERS, key, text, wrong)


def texts_in(value: Any) -> Iterator[str]:
    """Find all texts in a value, keys of mappings too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_in(item)


def rewritten(
    text: str, nodes: Sequence[ModifierNode], everyone: Sequence[ModifierSettings]
) -> str:
    """Write the modifiers that stand in into a recipe, with a comment on each change.

    A value that stayed the same is written as it was, so that ``eval(...)`` stays.
    """
    edits = []
    for modifier, one in zip(nodes, everyone, strict=True):
        if one.translated is not None:
            block = _block(text, modifier, one.translated, one.values)
            edits.append((*_span(text, modifier.node), block))
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
        renamed = f"was {theirs}" if theirs not in ("", key) else ""
        comment = found.comments.get(key) or renamed
        written = sources[theirs] if same else flow(value)
        lines.append(f"{indent}{key}: {written}{comment and f'  # {comment}'}")
    return "\n".join(lines)


def _source(text: str, node: yaml.Node) -> str:
    """Return how a value is written, if on one line and without an anchor or alias."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return ""
    written = text[node.start_mark.index : node.end_mark.index].strip()
    return "" if "\n" in written or written.startswith(("&", "*")) else written
