"""From a recipe's path or text, or from modifiers, to a checked recipe."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from obert_modifiers.faults import Fault, Rule
from obert_modifiers.host.bases import Modifier
from obert_modifiers.recipe.check import ModifierBuilder
from obert_modifiers.recipe.cross import cross_faults, cross_notes
from obert_modifiers.recipe.placed import KINDS, Found, Placed, of_kind
from obert_modifiers.recipe_text.arguments import parse_recipe_args
from obert_modifiers.recipe_text.outline import outline
from obert_modifiers.recipe_text.problems import Problem, RecipeError
from obert_modifiers.recipe_text.replacing import (
    old_layer_numbers,
    rewritten,
)
from obert_modifiers.recipe_text.text import RecipeText, compose, read_source
from obert_modifiers.recipe_text.values import ModifierSettings, Resolver
from obert_modifiers.recipe_text.writing import modifiers_text

Groups = dict[str, list[Modifier]]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe without faults.

    Attributes:
        file: Path of the recipe as it was given, or what stands for it.
        text: The recipe with every variable and expression worked out.
        staged: True for a recipe of stages.
        groups: The modifiers by stage; those of a flat recipe under ``""``.
        settings: What the recipe says about a modifier, by ``id`` of the modifier.
        changes: What means something else now, where ours stand in for SparseML's.
    """

    file: str
    text: str
    staged: bool
    groups: Groups
    settings: dict[int, ModifierSettings]
    changes: tuple[Problem, ...] = ()

    @property
    def placed(self) -> list[Placed]:
        """The modifiers in the order of the recipe, each with its line."""
        return [
            Placed(modifier, stage, self.settings[id(modifier)].line)
            for stage, group in self.groups.items()
            for modifier in group
        ]

    @property
    def notes(self) -> list[Problem]:
        """What is legal and may not be meant."""
        return [*self.changes, *self.problems_of(cross_notes(self.placed))]

    def problems_of(self, faults: Iterable[Found]) -> list[Problem]:
        """Describe problems with their lines."""
        return [self.problem(*fault) for fault in faults]

    def problem(self, modifier: Modifier, fault: Fault) -> Problem:
        """Describe a fault of one of the modifiers, with its line."""
        return self.settings[id(modifier)].problem(self.file, fault)


def load_recipe(
    source: str | Path, recipe_args: Mapping[str, Any] | str | None = None
) -> LoadedRecipe:
    """Load a recipe and check it completely."""
    text = read_source(source)
    parts = outline(text, compose(text))
    try:
        variables = parse_recipe_args(recipe_args)
    except (TypeError, ValueError) as error:
        fault = Fault(Rule.VARIABLE, broken=str(error))
        parts.report(text.first_line, "recipe_args", fault)
        variables = {}
    resolver = Resolver(parts, variables)
    builder = ModifierBuilder(text.file)
    groups: Groups = {}
    settings: dict[int, ModifierSettings] = {}
    for one in resolver.settings:
        modifier = builder.build(one)
        if modifier is not None:
            groups.setdefault(one.stage, []).append(modifier)
            settings[id(modifier)] = builder.replaced.get(id(one), (None, one))[1]
    loaded = LoadedRecipe(text.file, resolver.text(), parts.staged, groups, settings)
    problems = [*parts.problems, *builder.problems]
    complete = len(settings) == len(parts.modifiers)
    problems += _faults_between(loaded, complete)
    if problems:
        raise RecipeError(problems)
    if builder.replaced:
        loaded = _with_replacements(loaded, resolver.settings, builder)
    return loaded


def _with_replacements(
    loaded: LoadedRecipe, everyone: list[ModifierSettings], builder: ModifierBuilder
) -> LoadedRecipe:
    """Write the modifiers that stand in for others into the text, and their changes."""
    values = [one.values for one in everyone]
    found = [builder.replaced.get(id(one), (None, one))[0] for one in everyone]
    changes = [
        one.problem(loaded.file, change)
        for one, translated in zip(everyone, found, strict=True)
        for change in (translated.changes if translated else ())
    ]
    faults = [
        everyone[place].problem(loaded.file, fault)
        for place, fault in old_layer_numbers(found, values)
    ]
    if faults:
        raise RecipeError(faults)
    source = RecipeText(loaded.file, loaded.text)
    parts = outline(source, compose(source))
    nodes = list(zip(parts.modifiers, found, strict=True))
    text = rewritten(loaded.text, nodes, values)
    if not _holds(text, len(nodes)):
        text = _text_of(loaded.groups, loaded.staged)
    return replace(loaded, text=text, changes=tuple(changes))


def _holds(text: str, modifiers: int) -> bool:
    """Tell whether a text that was put together has so many modifiers.

    It has not where a modifier stood inside brackets, or shared values by an alias.
    """
    source = RecipeText("", text)
    try:
        parts = outline(source, compose(source))
    except RecipeError:
        return False
    return len(parts.modifiers) == modifiers and not parts.problems


def from_modifiers(
    modifiers: list[Modifier] | Mapping[str, list[Modifier]], file: str
) -> LoadedRecipe:
    """Write a recipe for modifiers that exist already."""
    staged = isinstance(modifiers, Mapping)
    groups = {k: list(v) for k, v in modifiers.items()} if staged else {"": modifiers}
    source = RecipeText(file, _text_of(groups, staged))
    resolver = Resolver(outline(source, compose(source)), {})
    everyone = [modifier for group in groups.values() for modifier in group]
    settings = {
        id(modifier): one
        for modifier, one in zip(everyone, resolver.settings, strict=True)
    }
    loaded = LoadedRecipe(file, source.text, staged, groups, settings)
    problems = _faults_between(loaded, True)
    if problems:
        raise RecipeError(problems)
    return loaded


def _text_of(groups: Groups, staged: bool) -> str:
    named = {stage: [_described(m) for m in group] for stage, group in groups.items()}
    return modifiers_text(named, staged)


def _described(modifier: Modifier) -> tuple[str, dict[str, Any]]:
    """Return a modifier's name and those properties that its constructor takes."""
    cls = type(modifier)
    keys = inspect.signature(cls.__init__).parameters
    values = modifier.props(only_serializable=True)
    return cls.__name__, {key: values[key] for key in keys if key in values}


def _faults_between(loaded: LoadedRecipe, complete: bool) -> list[Problem]:
    found = [*_repeated(loaded), *cross_faults(loaded.placed, complete)]
    return loaded.problems_of(found)


def _repeated(loaded: LoadedRecipe) -> Iterable[Found]:
    # SparseML keeps the state of modifiers by a hash of their settings.
    first: dict[str, int] = {}
    for placed in of_kind(loaded.placed, KINDS.pruning):
        before = first.setdefault(placed.modifier.identifier(), placed.line)
        if before != placed.line:
            fault = Fault(
                Rule.REPEATED,
                broken=f"the modifier repeats the one on line {before}",
                expected="pruning modifiers that differ, since their state is kept by "
                "their settings",
                fix="remove one",
            )
            yield placed.modifier, fault
