"""From a recipe's path or text, or from modifiers, to a checked recipe."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from obert_modifiers.recipe_text.replacing import old_layer_numbers, rewritten
from obert_modifiers.recipe_text.text import RecipeText, compose, read_source
from obert_modifiers.recipe_text.values import ModifierSettings, Resolver
from obert_modifiers.recipe_text.writing import modifiers_text

Groups = dict[str, list[Modifier]]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe without faults."""

    file: str  # path of the recipe as it was given, or what stands for it
    text: str  # with every variable and expression worked out
    staged: bool
    placed: Sequence[Placed]  # the modifiers, in the order of the recipe
    written: Sequence[ModifierSettings]  # the same as the recipe has them
    # What means something else now, where ours stand in for SparseML's.
    changes: tuple[Problem, ...] = ()

    @property
    def groups(self) -> Groups:
        """The modifiers by stage; those of a flat recipe under ``""``."""
        found: Groups = {}
        for placed in self.placed:
            found.setdefault(placed.stage, []).append(placed.modifier)
        return found

    @property
    def notes(self) -> list[Problem]:
        """What is legal and may not be meant."""
        return [*self.changes, *self.problems_of(cross_notes(self.placed))]

    def problems_of(self, faults: Iterable[Found]) -> list[Problem]:
        """Describe problems with their lines."""
        return [placed.settings.problem(self.file, fault) for placed, fault in faults]

    def refuse(self, faults: Iterable[Found], more: Iterable[Problem] = ()) -> None:
        """Raise what is wrong, if anything is."""
        problems = [*more, *self.problems_of(faults)]
        if problems:
            raise RecipeError(problems)

    def check(
        self,
        faults: Callable[[Modifier], Iterable[Fault]],
        only: Modifier | None = None,
    ) -> None:
        """Raise what a function finds wrong with all modifiers, or with one."""
        places = [p for p in self.placed if only is None or p.modifier is only]
        self.refuse((p, fault) for p in places for fault in faults(p.modifier))


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
    built = [builder.build(one) for one in resolver.settings]
    placed = [one for one in built if one is not None]
    written = resolver.settings
    loaded = LoadedRecipe(text.file, resolver.text(), parts.staged, placed, written)
    complete = len(placed) == len(parts.modifiers)
    problems = [*parts.problems, *builder.problems]
    loaded.refuse(_faults_between(placed, complete), problems)
    if all(one.translated is None for one in written):
        return loaded
    loaded.refuse((), [p.problem(text.file, f) for p, f in old_layer_numbers(written)])
    changes = [
        one.problem(text.file, change)
        for one in written
        if one.translated is not None
        for change in one.translated.changes
    ]
    new = rewrite(RecipeText(loaded.file, loaded.text), written)
    new = _text_of(loaded.groups, loaded.staged) if new is None else new
    return replace(loaded, text=new, changes=tuple(changes))


def rewrite(source: RecipeText, written: Sequence[ModifierSettings]) -> str | None:
    """Write the modifiers that stand in for others into a recipe's text.

    None where that gives another recipe: a modifier stood inside brackets, or shared
    values by an alias.
    """
    text = rewritten(source.text, outline(source, compose(source)).modifiers, written)
    try:
        found = load_recipe(f"{text}\n")  # a text, and not a path
    except RecipeError:
        return None
    return text if len(found.placed) == len(written) else None


def from_modifiers(
    modifiers: list[Modifier] | Mapping[str, list[Modifier]], file: str
) -> LoadedRecipe:
    """Write a recipe for modifiers that exist already."""
    staged = isinstance(modifiers, Mapping)
    groups = dict(modifiers) if staged else {"": modifiers}
    source = RecipeText(file, _text_of(groups, staged))
    resolver = Resolver(outline(source, compose(source)), {})
    everyone = [modifier for group in groups.values() for modifier in group]
    placed = [Placed(*pair) for pair in zip(everyone, resolver.settings, strict=True)]
    loaded = LoadedRecipe(file, source.text, staged, placed, resolver.settings)
    loaded.refuse(_faults_between(placed, complete=True))
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


def _faults_between(everyone: Sequence[Placed], complete: bool) -> Iterator[Found]:
    # SparseML keeps the state of modifiers by a hash of their settings.
    first: dict[str, int] = {}
    for placed in of_kind(everyone, KINDS.pruning):
        before = first.setdefault(placed.modifier.identifier(), placed.line)
        if before != placed.line:
            wrong = f"the modifier repeats the one on line {before}; expected pruning "
            wrong += "modifiers that differ, since their state is kept by their "
            yield placed, Fault(Rule.REPEATED, broken=f"{wrong}settings; remove one")
    yield from cross_faults(everyone, complete)
