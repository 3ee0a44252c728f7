"""Run unedited recipes of SparseML's modifiers on ours.

SparseML finds a modifier's class by its YAML tag. Here each tag of
:data:`~obert_modifiers.compat.replace_tables.TABLES` gets a constructor that builds one
of our modifiers instead, from the same keys. SparseML's manager and ours both use it.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from obert_modifiers import host, modifiers
from obert_modifiers.compat.replace_tables import TABLES
from obert_modifiers.compat.replace_translate import translate
from obert_modifiers.compat.replace_translation import MODES, SAME
from obert_modifiers.faults import Fault, Rule
from obert_modifiers.modifiers.rules import choice
from obert_modifiers.recipe_text.replacing import Translated

_TAG = "!pytorch.{}"
_IGNORED_KEY = "log_types"  # from old recipes; SparseML drops it too
_LOADERS = (yaml.Loader, yaml.FullLoader, yaml.UnsafeLoader, yaml.SafeLoader)
_LOGGER = logging.getLogger(__name__)


class _Constructor:
    """Builds one of our modifiers for a tag of SparseML's."""

    def __init__(
        self, name: str, mode: str, before: Mapping[type, Any], asked: bool
    ) -> None:
        # Not asked for: ours stand in as SparseML's are missing.
        self.name, self.mode, self.before, self.asked = name, mode, before, asked

    def translate(self, values: Mapping[str, Any]) -> Translated:
        found = translate(self.name, values, self.mode)
        if not self.asked:
            stands_in = f"!{found.name} takes its place, as SparseML is not here"
            found.changes.insert(0, Fault(Rule.NOTE, "", broken=stands_in))
        return found

    def __call__(self, loader: Any, node: yaml.Node) -> Iterator[Any]:
        """Construct the modifier as YAML asks for it: bare, then with its values."""
        plain = isinstance(node, yaml.ScalarNode)
        values = {} if plain else loader.construct_mapping(node, deep=True)
        values.pop(_IGNORED_KEY, None)
        found = self.translate(values)
        if found.faults:
            wrong = "\n".join(f"!{self.name}: {fault}" for fault in found.faults)
            # SparseML rewrites a recipe before it is parsed, and loses its lines.
            raise ValueError(f"{wrong}\n`obert recipe check --replace` names the line")
        cls = getattr(modifiers, found.name)
        modifier = cls.__new__(cls)
        yield modifier
        for text in found.changes:
            _LOGGER.warning("!%s runs as !%s: %s", self.name, found.name, text)
        modifier.__init__(**found.values)


def replace_sparseml_modifiers(mode: str = "same") -> None:
    """Have SparseML's YAML tags build our modifiers, in this process.

    ``same`` keeps the meaning of every key; ``ours`` takes our defaults, with each
    change of meaning as a warning in the log.
    """
    choice(*MODES)("mode", mode)
    restore_sparseml_modifiers()
    _replace(mode, TABLES)


def _replace(mode: str, names: Iterable[str], asked: bool = True) -> None:
    for name in names:
        tag = _TAG.format(name)
        before = {one: one.yaml_constructors.get(tag) for one in _LOADERS}
        constructor = _Constructor(name, mode, before, asked)
        for loader in _LOADERS:
            yaml.add_constructor(tag, constructor, loader)


def restore_sparseml_modifiers() -> None:
    """Have SparseML's YAML tags build SparseML's modifiers again."""
    for name in TABLES:
        tag = _TAG.format(name)
        found = yaml.SafeLoader.yaml_constructors.get(tag)
        if not isinstance(found, _Constructor):
            continue
        for loader, constructor in found.before.items():
            if constructor is None:
                loader.yaml_constructors.pop(tag, None)
            else:
                yaml.add_constructor(tag, constructor, loader)


@contextmanager
def replaced(mode: str | None) -> Iterator[None]:
    """Have SparseML's YAML tags build our modifiers in the body.

    None leaves them, but for those missing without SparseML, for which ours stand in.
    """
    tag = _TAG.format(next(iter(TABLES)))
    found = yaml.SafeLoader.yaml_constructors.get(tag)
    outer = found.mode if isinstance(found, _Constructor) and found.asked else None
    if mode is not None:
        replace_sparseml_modifiers(mode)
    elif outer is None and host.name() == host.OWN:
        _replace(SAME, [name for name in TABLES if name in host.ONLY_SPARSEML], False)
    else:
        yield
        return
    try:
        yield
    finally:
        restore_sparseml_modifiers()
        if outer is not None:
            replace_sparseml_modifiers(outer)
