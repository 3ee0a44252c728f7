"""One modifier of an old recipe while it is translated into one of ours."""

import inspect
from collections.abc import Mapping
from typing import Any

from obert_modifiers import modifiers
from obert_modifiers.compat.replace_tables import KEYS, REQUIRED, TABLES, table_of
from obert_modifiers.faults import Fault, Rule, nearest
from obert_modifiers.recipe_text.replacing import Translated

SAME, OURS = "same", "ours"
MODES = (SAME, OURS)


class Translation:
    """One modifier of an old recipe while it is translated.

    `given` are the recipe's keys, `old` every key of SparseML's modifier with its value
    there, `found` is what becomes of it.
    """

    def __init__(self, tag: str, given: Mapping[str, Any], mode: str) -> None:
        """Take over what has the same meaning, and report what is not supported."""
        self.tag, self.given, self.mode = tag, given, mode
        self.found = Translated(TABLES[tag])
        table = KEYS[table_of(tag, given)]
        cls = getattr(modifiers, self.found.name)
        parameters = inspect.signature(cls.__init__).parameters
        self.old: dict[str, Any] = {}
        for key in sorted(set(given) - set(table)):
            near = nearest(key, set(table) - set(given)) or nearest(key, table)
            broken = f"{key} is not a key of {tag}"
            expected = f"one of {', '.join(sorted(table))}"
            fix = f"write {near[0]}" if near else "remove it"
            self.fault(Rule.UNKNOWN, key, broken, expected, fix)
        for key, row in table.items():
            if row.default == REQUIRED and key not in given:
                fix = f"add '{key}: ...' to the modifier"
                self.fault(Rule.MISSING, key, f"{key} is missing", "a value", fix)
            value = self.old[key] = given.get(key, row.default)
            if row.only is not None and value not in row.only:
                self.refuse(key, row.only[0], row.note)
            elif row.becomes in parameters and row.only is None:
                ours = parameters[row.becomes].default
                if key in given or (mode == SAME and ours != value):
                    self.put(row.becomes, value, key)
            elif key in given:
                self.found.left_out[key] = row.note

    def fault(self, rule: Rule, key: str, broken: str, expected: str, fix: str) -> None:
        """Report what is wrong with a key of SparseML's."""
        self.found.faults.append(Fault(rule, key, None, broken, expected, fix))

    def refuse(self, key: str, accepted: Any, why: str) -> None:
        """Report a value of one of SparseML's keys that ours do not support."""
        broken = f"{key}={self.old[key]} is not supported in the place of {self.tag}"
        fix = "write that or leave it out"
        self.fault(Rule.REFUSED, key, f"{broken} ({why})", str(accepted), fix)

    def put(self, ours: str, value: Any, theirs: str = "", comment: str = "") -> None:
        """Give one of our keys a value, from SparseML's key, with a comment on it."""
        self.found.values[ours] = value
        if theirs:
            self.found.origin[ours] = theirs
        if comment:
            self.found.comments[ours] = comment

    def change(self, key: str, message: str) -> None:
        """Note that a key of SparseML's meant something else there."""
        self.found.changes.append(Fault(Rule.NOTE, key, broken=message))
