"""Write the tables of all modifiers' keys into docs/modifiers.md, from the keys."""

from pathlib import Path

from obert_modifiers import modifiers
from obert_modifiers.modifiers.keys import REGISTRY, REQUIRED, Key

DOCS = Path(__file__).parent.parent / "docs" / "modifiers.md"
BEGIN = "<!-- The tables below are written by tools/keys_table.py. -->\n"
assert modifiers.__all__


def tables() -> str:
    """Return a table for each modifier."""
    parts = []
    for name in sorted(REGISTRY):
        rows = [_row(key) for key in REGISTRY[name].KEYS.values()]
        head = "| key | value | default | later | meaning |\n|---|---|---|---|---|\n"
        parts.append(f"### {name}\n\n{head}{''.join(rows)}")
    return "\n".join(parts)


def _row(key: Key) -> str:
    default = "required" if key.default is REQUIRED else f"`{_shown(key.default)}`"
    later = {True: "yes", False: ""}.get(key.later, "true only")
    rule, meaning = _plain(key.rule.says), _plain(key.meaning)
    return f"| `{key.name}` | {rule} | {default} | {later} | {meaning} |\n"


def _plain(text: str) -> str:
    return text.replace("__", r"\_\_")


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return "[]" if value == () else str(value)


if __name__ == "__main__":
    before = DOCS.read_text(encoding="utf-8").partition(BEGIN)[0]
    DOCS.write_text(f"{before}{BEGIN}\n{tables()}", encoding="utf-8")
