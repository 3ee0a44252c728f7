"""Work out a recipe's values: its variables, ``eval(...)`` and ``recipe_args``."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from obert_modifiers.faults import Fault, Rule, nearest
from obert_modifiers.recipe_text.expression import UnknownNameError, evaluate
from obert_modifiers.recipe_text.outline import ModifierNode, Outline, is_modifier
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.writing import flow

_CONTAINERS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_STRING = "tag:yaml.org,2002:str"
# YAML 1.1 wants a dot before an exponent: PyYAML reads 1e-7 as a string.
_EXPONENT_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_ANCHOR_OR_TAG = re.compile(r"(?:[&!]\S*\s+)*")
_FAILED = object()


class _ReportedError(Exception):
    """A value that cannot be had, for a reason that is among the problems."""


@dataclass
class ModifierSettings:
    """A modifier with its values worked out.

    Attributes:
        name: Its name.
        stage: Name of its stage; empty in a recipe without stages.
        line: Line of its tag.
        values: Value by key.
        lines: Line by key.
        faulty: Keys whose values could not be worked out.
    """

    name: str
    stage: str
    line: int
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)

    def line_of(self, key: str) -> int:
        """Return the line of a key, or of the modifier where it is left out."""
        return self.lines.get(key, self.line)

    def problem(self, file: str, fault: Fault, under: str = "") -> Problem:
        """Place a fault at the line of its key, or of the key that it stands under."""
        line = self.line_of(under or fault.key)
        return Problem(file, line, self.name, fault, under)


class Resolver:
    """Works out the values of a recipe and writes them into its text.

    Attributes:
        settings: The modifiers with their values, in the order of the recipe.
    """

    def __init__(self, outline: Outline, recipe_args: Mapping[str, Any]):
        """Work out every variable and every modifier's values."""
        self._outline = outline
        self._replaced: dict[int, Any] = {}
        self._edits: dict[tuple[int, int], str] = {}
        self._known: dict[tuple[str, str], Any] = {}
        self._active: list[tuple[str, str] | int] = []
        self._constructor = SafeConstructor()
        self._replace_variables(recipe_args)
        for stage, nodes in outline.variables.items():
            for name in nodes:
                try:
                    self._variable(stage, name)
                except _ReportedError:
                    continue
        found = (self._modifier(modifier) for modifier in outline.modifiers)
        self.settings = [settings for settings in found if settings]

    def text(self) -> str:
        """Write the recipe with every variable and expression worked out."""
        text = self._outline.source.text
        for (start, end), value in sorted(self._edits.items(), reverse=True):
            text = text[:start] + value + text[end:]
        return text

    def _replace_variables(self, recipe_args: Mapping[str, Any]) -> None:
        tables = self._outline.variables.values()
        place = {name: node for table in tables for name, node in table.items()}
        for name, value in recipe_args.items():
            nodes = [table[name] for table in tables if name in table]
            self._replaced.update((id(node), value) for node in nodes)
            if not nodes:
                near = nearest(name, place)
                node = place[near[0]] if near else self._outline.source.first_line
                broken = f"{name} is not a variable of this recipe"
                fault = Fault(Rule.VARIABLE, name, None, broken, *_names(place, near))
                self._outline.report(node, "recipe_args", fault)

    def _variable(self, stage: str, name: str) -> Any:
        # A stage's own variables come before those of the whole recipe.
        tables = self._outline.variables
        scope = stage if name in tables[stage] else ""
        if name not in tables[scope]:
            raise UnknownNameError(name)
        node, place = tables[scope][name], (scope, name)
        if place in self._active:
            broken, fix = f"{name} depends on itself", "give one of them a value"
            wrong = broken, "no circle of variables", fix
            self._fail(node, "", name, *wrong, Rule.VARIABLE)
        if place not in self._known:
            self._known[place] = _FAILED
            self._active.append(place)
            try:
                self._known[place] = self._value(node, scope, "", name)
            finally:
                self._active.remove(place)
        if self._known[place] is _FAILED:
            raise _ReportedError
        return copy.deepcopy(self._known[place])

    def _modifier(self, modifier: ModifierNode) -> ModifierSettings | None:
        node, name = modifier.node, modifier.name
        line = self._outline.source.line_of(node)
        settings = ModifierSettings(name, modifier.stage, line)
        if isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null"):
            return settings
        try:
            pairs = self._pairs(node, name, "")
        except _ReportedError:
            return None
        for key_node, value_node in pairs:
            key = str(key_node.value)
            settings.lines[key] = self._outline.source.line_of(key_node)
            try:
                value = self._value(value_node, modifier.stage, name, key)
                settings.values[key] = value
            except _ReportedError:
                settings.faulty.add(key)
        return settings

    def _pairs(self, node: yaml.Node, modifier: str, key: str) -> list[tuple]:
        """Return a mapping's keys and values, merged ones (``<<``) included."""
        if not isinstance(node, yaml.MappingNode):
            fix = "write them indented below the modifier, one a line"
            wrong = f"the modifier holds a {node.id}", "keys with values", fix
            self._fail(node, modifier, key, *wrong)
        try:
            self._constructor.flatten_mapping(node)
        except ConstructorError as error:
            self._fail(node, modifier, key, *_unreadable(error))
        return node.value

    def _value(self, node: yaml.Node, stage: str, modifier: str, key: str) -> Any:
        if id(node) in self._replaced:
            value = self._replaced[id(node)]
        elif node.tag in _CONTAINERS:
            return self._container(node, stage, modifier, key)
        else:
            value = self._plain(node, modifier, key)
        expression = isinstance(value, str) and value.startswith("eval(")
        if expression:
            value = self._evaluated(node, value, stage, modifier, key)
        if expression or id(node) in self._replaced:
            self._edit(node, value, modifier, key)
        return value

    def _container(self, node: yaml.Node, stage: str, modifier: str, key: str) -> Any:
        if id(node) in self._active:
            broken = f"{key} holds itself through a YAML alias"
            self._fail(node, modifier, key, broken, "plain values", "write them out")
        self._active.append(id(node))
        failed = False
        names: list[Any] = []
        values: list[Any] = []
        mapping = isinstance(node, yaml.MappingNode)
        pairs = self._pairs(node, modifier, key) if mapping else node.value
        for item in pairs:
            try:
                if mapping:
                    names.append(self._name(item[0], modifier, key))
                below = item[1] if mapping else item
                values.append(self._value(below, stage, modifier, key))
            except _ReportedError:
                failed = True
        self._active.remove(id(node))
        if failed:
            raise _ReportedError
        return _sorted(dict(zip(names, values, strict=True))) if mapping else values

    def _name(self, node: yaml.Node, modifier: str, key: str) -> Any:
        """Return a mapping's key, which cannot be an expression."""
        name = self._plain(node, modifier, key)
        if isinstance(node, yaml.ScalarNode) and not str(name).startswith("eval("):
            return name
        broken = f"{key} has the key {str(node.value)[:40]}, which is not a plain one"
        wrong = broken, "a number or a word", "write its value"
        self._fail(node, modifier, key, *wrong, Rule.EXPRESSION)

    def _plain(self, node: yaml.Node, modifier: str, key: str) -> Any:
        if is_modifier(node):
            raise _ReportedError  # misplaced, and reported as such
        if node.tag == _STRING and isinstance(node, yaml.ScalarNode):
            number = node.style is None and _EXPONENT_FLOAT.fullmatch(node.value)
            return float(node.value) if number else node.value
        try:
            return self._constructor.construct_object(node, deep=True)
        except (ConstructorError, ValueError, TypeError) as error:
            self._fail(node, modifier, key, *_unreadable(error))

    def _evaluated(
        self, node: yaml.Node, text: str, stage: str, modifier: str, key: str
    ) -> Any:
        inner = text[len("eval(") : -1].strip()
        names = [*self._outline.variables[stage], *self._outline.variables[""]]
        try:
            if inner in names:
                return self._variable(stage, inner)
            if not text.endswith(")"):
                raise ValueError("is not closed")
            return evaluate(inner, lambda name: self._variable(stage, name))
        except UnknownNameError as error:
            near = nearest(error.name, names)
            broken = f"holds {error.name}, which is no variable"
            wrong = broken, *_names(names, near)
        except ValueError as error:
            expected = "numbers, variables and + - * / // % ** between eval( and )"
            wrong = str(error), expected, "correct it"
        fault = Fault(Rule.EXPRESSION, key, text, *wrong)
        self._outline.report(node, modifier, fault)
        raise _ReportedError

    def _edit(self, node: yaml.Node, value: Any, modifier: str, key: str) -> None:
        """Note that a value takes the place of a node in the text."""
        text = self._outline.source.text
        start, end = node.start_mark.index, node.end_mark.index
        start += len(_ANCHOR_OR_TAG.match(text[start:end])[0])
        end = start + len(text[start:end].rstrip())
        written = flow(value)
        if start == end:
            written = f" {written}"  # a key without a value ends at its colon
        if self._edits.setdefault((start, end), written) != written:
            broken = "has two values, in two stages that share it by a YAML alias"
            wrong = f"{key} {broken}", "one", "write it out in each stage"
            self._fail(node, modifier, key, *wrong)

    def _fail(
        self,
        node: yaml.Node,
        modifier: str,
        key: str,
        broken: str,
        expected: str,
        fix: str,
        rule: Rule = Rule.YAML,
    ) -> None:
        fault = Fault(rule, key, None, broken, expected, fix)
        self._outline.report(node, modifier, fault)
        raise _ReportedError


def _names(candidates: Mapping[str, Any] | list[str], near: list[str]) -> list[str]:
    """Return what is expected in the place of a name, and what to write."""
    known = ", ".join(sorted(set(candidates)))
    expected = f"one of {known}" if known else "no variables"
    return [expected, f"write {near[0]}" if near else "define it or remove it"]


def _sorted(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Return a mapping in the order in which SparseML's own loader gives it.

    It matters: of two sparsities whose patterns match a parameter, the first counts.
    """
    try:
        return dict(sorted(mapping.items(), key=lambda item: item[0]))
    except TypeError:  # keys of several types stay as they are, there too
        return mapping


def _unreadable(error: Exception) -> tuple[str, str, str]:
    what = getattr(error, "problem", None) or str(error)
    return f"the value cannot be read ({what})", "plain YAML", "correct it"
