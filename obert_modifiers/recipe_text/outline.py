"""Find the variables, stages and modifiers in a recipe's YAML nodes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml

from obert_modifiers.faults import Fault, Rule, nearest
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.text import RecipeText

_GROUP_WORD = "modifiers"
_GROUPS = ("modifiers", "pruning_modifiers", "training_modifiers")
# What comes nearest to the modifiers of the formats that name them by keys.
_MODIFIER = "Modifier"
_PRUNER = "OBERTPruningModifier"
_NEAREST = {
    "AWQModifier": "QATModifier",
    "ConstantPruningModifier": "ConstantMasksModifier",
    "GPTQModifier": "QATModifier",
    "MagnitudePruningModifier": "GMPStarPruningModifier",
    "OutputDistillationModifier": "LogitDistillationModifier",
    "QuantizationModifier": "QATModifier",
    "SmoothQuantModifier": "QATModifier",
}
_NULL = "tag:yaml.org,2002:null"


class ModifierNode(NamedTuple):
    """A modifier as it stands in the recipe: its tag without exclamation mark."""

    name: str
    stage: str  # empty in a recipe without stages
    node: yaml.Node


@dataclass
class Outline:
    """The parts of a recipe, and what is wrong with their arrangement."""

    source: RecipeText
    staged: bool = False
    # Value by name, by stage; the stage "" holds those of the whole recipe.
    variables: dict[str, dict[str, yaml.Node]] = field(default_factory=dict)
    modifiers: list[ModifierNode] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def report(self, place: yaml.Node | int, modifier: str, fault: Fault) -> None:
        """Add a problem at a node, or at a line of the file."""
        line = place if isinstance(place, int) else self.source.line_of(place)
        self.problems.append(Problem(self.source.file, line, modifier, fault))

    def misplaced(self, place: yaml.Node, key: str, wrong: str) -> None:
        """Add a problem with the arrangement, under a key of the recipe."""
        self.report(place, "", Fault(Rule.ARRANGEMENT, key, broken=wrong))


def outline(source: RecipeText, root: yaml.MappingNode) -> Outline:
    """Sort the nodes of a recipe into variables, stages and modifiers.

    A recipe with a key that holds the word "modifiers" is flat. Otherwise every
    mapping with such a key is a stage. All other keys are variables.
    """
    found = Outline(source)
    _report_repeated_keys(found, root)
    stages = {
        str(key.value): value
        for key, value in root.value
        if isinstance(value, yaml.MappingNode) and _has_groups(value)
    }
    found.staged = bool(stages) and not _has_groups(root)
    found.variables[""] = {}
    known: set[int] = set()
    for key, value in root.value:
        name = str(key.value)
        if name not in stages:
            _sort(found, "", key, value)
        elif found.staged:
            found.variables[name] = {}
            for inner, below in value.value:
                _sort(found, name, inner, below)
        else:
            known |= {id(node) for node, _ in walk(value)}
            wrong = "a stage stands beside modifiers of the whole recipe; expected one "
            wrong += "or the other; move those modifiers into a stage"
            found.misplaced(key, name, wrong)
    _report_misplaced(found, root, known)
    if not found.problems:
        _report_missing(found, root, stages)
    return found


def _has_groups(node: yaml.MappingNode) -> bool:
    return any(_GROUP_WORD in str(key.value) for key, _ in node.value)


def _sort(found: Outline, stage: str, key: yaml.Node, value: yaml.Node) -> None:
    """Put one entry of the recipe, or of a stage, where it belongs."""
    name = str(key.value)
    if _GROUP_WORD not in name:
        found.variables[stage][name] = value
    elif isinstance(value, yaml.SequenceNode):
        for item in value.value:
            if is_modifier(item):
                found.modifiers.append(ModifierNode(modifier_name(item), stage, item))
            else:
                wrong = "an entry of the list is not a modifier; expected a tag such "
                wrong += "as !EpochRangeModifier; put it after the dash"
                found.misplaced(item, name, wrong)
    elif newer := _named_by_keys(value):
        ours = ", ".join(dict.fromkeys(f"!{_NEAREST.get(n, _PRUNER)}" for n in newer))
        wrong = f"{name} names modifiers by keys ({', '.join(newer)}), as recipes of "
        wrong += "llm-compressor and of SparseML's one-shot framework do; expected a "
        wrong += "list of modifiers with tags; run this file with llm-compressor, or "
        wrong += f"begin from a recipe here with {ours} (docs/recipes.md lists them)"
        found.misplaced(key, name, wrong)
    elif value.tag != _NULL:
        wrong = f"{name} is a {value.id}; expected a list of modifiers; "
        found.misplaced(key, name, f"{wrong}begin each with a dash")


def _named_by_keys(value: yaml.Node) -> list[str]:
    """Name the modifiers that are written as keys, as newer formats have them."""
    if not isinstance(value, yaml.MappingNode) or is_modifier(value):
        return []
    names = [str(key.value) for key, _ in value.value]
    return [name for name in names if name.endswith(_MODIFIER)]


def _report_repeated_keys(found: Outline, root: yaml.Node) -> None:
    for node, _ in walk(root):
        if not isinstance(node, yaml.MappingNode):
            continue
        modifier = modifier_name(node) if is_modifier(node) else ""
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            before = first.setdefault((key.tag, key.value), key)
            if before is not key:
                line = found.source.line_of(before)
                wrong = f"{key.value} is given again after line {line}; expected each "
                wrong += "key once; remove one of the two"
                found.report(
                    key, modifier, Fault(Rule.REPEATED, key.value, None, wrong)
                )


def _report_misplaced(found: Outline, root: yaml.Node, known: set[int]) -> None:
    known = known | {id(modifier.node) for modifier in found.modifiers}
    for node, key in walk(root):
        if not is_modifier(node) or id(node) in known:
            continue
        if any(problem.key == key for problem in found.problems):
            continue  # the group itself is already reported
        group = (nearest(key, _GROUPS) or [f"{key}_modifiers"])[0]
        wrong = f"the modifier stands under '{key}', which is not read; expected a key "
        wrong += f"with 'modifiers' in its name; rename it to {group}"
        fault = Fault(Rule.ARRANGEMENT, broken=wrong)
        found.report(node, modifier_name(node), fault)


def _report_missing(
    found: Outline, root: yaml.Node, stages: dict[str, yaml.MappingNode]
) -> None:
    with_modifiers = {modifier.stage for modifier in found.modifiers}
    if found.staged and with_modifiers:
        wrong = "the stage has no modifiers; expected at least one; add it or remove "
        wrong += "the stage"
        for name in [name for name in stages if name not in with_modifiers]:
            found.misplaced(stages[name], name, wrong)
    elif not found.modifiers:
        wrong = "the recipe has no modifiers; expected at least one in a list under a "
        wrong += "key such as 'modifiers'; add '- !EpochRangeModifier' there"
        found.misplaced(root, "", wrong)


def is_modifier(node: yaml.Node) -> bool:
    """Tell whether a node carries a modifier's tag."""
    return node.tag.startswith("!")


def modifier_name(node: yaml.Node) -> str:
    """Return the name of the modifier in a node's tag."""
    return node.tag[1:]


def walk(node: yaml.Node) -> Iterator[tuple[yaml.Node, str]]:
    """Visit a node and everything below it, each node once, with the key above it."""
    seen: set[int] = set()
    stack = [(node, "")]
    while stack:
        node, key = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node, key
        if isinstance(node, yaml.SequenceNode):
            stack.extend((item, key) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            stack.extend((value, str(name.value)) for name, value in node.value)
