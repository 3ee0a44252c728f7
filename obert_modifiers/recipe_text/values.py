"""Work out a recipe's values: its variables, ``eval(...)`` and ``recipe_args``."""

import copy
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from obert_modifiers.faults import Fault, Rule, nearest
from obert_modifiers.recipe_text.expression import UnknownNameError, evaluate
from obert_modifiers.recipe_text.outline import ModifierNode, Outline, is_modifier
from obert_modifiers.recipe_text.problems import Problem
from obert_modifiers.recipe_text.writing import flow

IGNORED_KEY = "log_types"  # from old recipes; SparseML drops it too
_CONTAINERS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_STRING = "tag:yaml.org,2002:str"
# YAML 1.1 wants a dot before an exponent: PyYAML reads 1e-7 as a string.
_EXPONENT_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_ANCHOR_OR_TAG = re.compile(r"(?:[&!]\S*\s+)*")
_FAILED = object()


class _ReportedError(Exception):
    """A value that cannot be had, for a reason that is among the problems."""


class _Place(NamedTuple):
    """Where a value stands; the modifier is empty for a variable."""

    stage: str
    modifier: str
    key: str


@dataclass
class ModifierSettings:
    """A modifier with its values worked out."""

    name: str
    stage: str  # empty in a recipe without stages
    line: int  # of its tag
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)  # keys without a value, reported
    translated: Any = None  # what stands in for it, where something does

    def line_of(self, key: str) -> int:
        """Return the line of a key, or of the modifier where it is left out."""
        return self.lines.get(key, self.line)

    def problem(self, file: str, fault: Fault, under: str = "") -> Problem:
        """Place a fault at the line of its key, or of the key that it stands under."""
        line = self.line_of(under or fault.key)
        return Problem(file, line, self.name, fault, under)


class Resolver:
    """Works out the values of a recipe and writes them into its text.

    ``settings`` are the modifiers with their values, in the order of the recipe.
    """

    def __init__(self, outline: Outline, recipe_args: Mapping[str, Any]):
        self._outline = outline
        self._replaced: dict[int, Any] = {}  # value from recipe_args by id of the node
        self._edits: dict[tuple[int, int], str] = {}
        self._known: dict[_Place, Any] = {}
        self._active: list[_Place | int] = []
        self._constructor = SafeConstructor()
        self._replace_variables(recipe_args)
        for stage, nodes in outline.variables.items():
            for name in nodes:
                with suppress(_ReportedError):
                    self._variable(stage, name)
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
                wrong = f"{name} is not a variable of this recipe; "
                fault = Fault(Rule.VARIABLE, name, broken=wrong + _one_of(place, name))
                self._outline.report(node, "recipe_args", fault)

    def _variable(self, stage: str, name: str) -> Any:
        tables = self._outline.variables
        scope = stage if name in tables[stage] else ""  # a stage's own come first
        if name not in tables[scope]:
            raise UnknownNameError(name=name)
        node, at = tables[scope][name], _Place(scope, "", name)
        if at in self._active:
            wrong = f"{name} depends on itself; expected no circle of variables; "
            wrong += "give one of them a value"
            self._fail(node, at, wrong, Rule.VARIABLE)
        if at not in self._known:
            self._known[at] = _FAILED
            self._active.append(at)
            try:
                self._known[at] = self._value(node, at)
            finally:
                self._active.remove(at)
        if self._known[at] is _FAILED:
            raise _ReportedError
        return copy.deepcopy(self._known[at])

    def _modifier(self, modifier: ModifierNode) -> ModifierSettings | None:
        node, line_of = modifier.node, self._outline.source.line_of
        settings = ModifierSettings(modifier.name, modifier.stage, line_of(node))
        if isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null"):
            return settings
        at = _Place(modifier.stage, modifier.name, "")
        try:
            pairs = self._pairs(node, at)
        except _ReportedError:
            return None
        for key_node, value_node in pairs:
            key = str(key_node.value)
            settings.lines[key] = line_of(key_node)
            try:
                settings.values[key] = self._value(value_node, at._replace(key=key))
            except _ReportedError:
                settings.faulty.add(key)
        settings.values.pop(IGNORED_KEY, None)
        settings.faulty.discard(IGNORED_KEY)
        return settings

    def _pairs(self, node: yaml.Node, at: _Place) -> list[tuple]:
        """Return a mapping's keys and values, merged ones (``<<``) included."""
        if not isinstance(node, yaml.MappingNode):
            wrong = f"the modifier holds a {node.id}; expected keys with values; "
            wrong += "write them indented below the modifier, one a line"
            self._fail(node, at, wrong)
        try:
            self._constructor.flatten_mapping(node)
        except ConstructorError as error:
            self._fail(node, at, _unreadable(error))
        return node.value

    def _value(self, node: yaml.Node, at: _Place) -> Any:
        given = id(node) in self._replaced
        if not given and node.tag in _CONTAINERS:
            return self._container(node, at)
        value = self._replaced[id(node)] if given else self._plain(node, at)
        expression = isinstance(value, str) and value.startswith("eval(")
        if expression:
            value = self._evaluated(node, value, at)
        if expression or given:
            self._edit(node, value, at)
        return value

    def _container(self, node: yaml.Node, at: _Place) -> Any:
        if id(node) in self._active:
            wrong = f"{at.key} holds itself through a YAML alias; "
            self._fail(node, at, f"{wrong}expected plain values; write them out")
        mapping = isinstance(node, yaml.MappingNode)
        pairs = (
            self._pairs(node, at) if mapping else [(None, one) for one in node.value]
        )
        found, failed = [], False
        self._active.append(id(node))
        for key, below in pairs:
            try:
                name = None if key is None else self._name(key, at)
                found.append((name, self._value(below, at)))
            except _ReportedError:
                failed = True
        self._active.remove(id(node))
        if failed:
            raise _ReportedError
        return _sorted(dict(found)) if mapping else [value for _, value in found]

    def _name(self, node: yaml.Node, at: _Place) -> Any:
        """Return a mapping's key, which cannot be an expression."""
        name = self._plain(node, at)
        if isinstance(node, yaml.ScalarNode) and not str(name).startswith("eval("):
            return name
        wrong = f"{at.key} has the key {str(node.value)[:40]}, which is not a plain "
        wrong += "one; expected a number or a word; write its value"
        self._fail(node, at, wrong, Rule.EXPRESSION)

    def _plain(self, node: yaml.Node, at: _Place) -> Any:
        if is_modifier(node):
            raise _ReportedError  # misplaced, and reported as such
        if node.tag == _STRING and isinstance(node, yaml.ScalarNode):
            number = node.style is None and _EXPONENT_FLOAT.fullmatch(node.value)
            return float(node.value) if number else node.value
        try:
            return self._constructor.construct_object(node, deep=True)
        except (ConstructorError, ValueError, TypeError) as error:
            self._fail(node, at, _unreadable(error))

    def _evaluated(self, node: yaml.Node, text: str, at: _Place) -> Any:
        inner = text[len("eval(") : -1].strip()
        names = {*self._outline.variables[at.stage], *self._outline.variables[""]}
        try:
            if inner in names:
                return self._variable(at.stage, inner)
            if not text.endswith(")"):
                raise ValueError("is not closed")
            return evaluate(inner, lambda name: self._variable(at.stage, name))
        except UnknownNameError as error:
            wrong = f"holds {error.name}, which is no variable; "
            wrong += _one_of(names, error.name)
        except ValueError as error:
            wrong = f"{error}; expected numbers, variables and + - * / // % ** between "
            wrong += "eval( and ); correct it"
        self._fail(node, at, f"{at.key}={text} {wrong}", Rule.EXPRESSION)

    def _edit(self, node: yaml.Node, value: Any, at: _Place) -> None:
        """Note that a value takes the place of a node in the text."""
        text = self._outline.source.text
        start, end = node.start_mark.index, node.end_mark.index
        start += len(_ANCHOR_OR_TAG.match(text[start:end])[0])
        end = start + len(text[start:end].rstrip())
        written = flow(value)
        if start == end:
            written = f" {written}"  # a key without a value ends at its colon
        if self._edits.setdefault((start, end), written) != written:
            wrong = f"{at.key} has two values, in two stages that share it by a YAML "
            wrong += "alias; expected one; write it out in each stage"
            self._fail(node, at, wrong)

    def _fail(
        self, node: yaml.Node, at: _Place, wrong: str, rule: Rule = Rule.YAML
    ) -> NoReturn:
        self._outline.report(node, at.modifier, Fault(rule, at.key, broken=wrong))
        raise _ReportedError


def _one_of(names: Iterable[str], word: str) -> str:
    """Say which names are expected in the place of a word, and what to write."""
    known, near = ", ".join(sorted(names)), nearest(word, names)
    expected = f"one of {known}" if known else "no variables"
    fix = f"write {near[0]}" if near else "define it or remove it"
    return f"expected {expected}; {fix}"


def _sorted(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Return a mapping in the order in which SparseML's own loader gives it.

    It matters: of two sparsities whose patterns match a parameter, the first counts.
    """
    try:
        return dict(sorted(mapping.items(), key=lambda item: item[0]))
    except TypeError:  # keys of several types stay as they are, there too
        return mapping


def _unreadable(error: Exception) -> str:
    what = getattr(error, "problem", None) or str(error)
    return f"the value cannot be read ({what}); expected plain YAML; correct it"
