"""Read a recipe's text and parse it into YAML nodes, which know their lines.

SparseML's own helpers rewrite the text several times before they load it, and lose
its lines on the way.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from obert_modifiers.faults import Fault, Rule, nearest
from obert_modifiers.recipe_text.problems import Problem, RecipeError

TEXT_NAME = "<recipe text>"
SUFFIXES = (".yaml", ".yml", ".md")
_FENCES = ("---", "+++")


@dataclass(frozen=True)
class RecipeText:
    """The YAML of a recipe, without the fences of front matter."""

    file: str  # path of the recipe as it was given, or "<recipe text>"
    text: str
    first_line: int = 1  # line of the file in which the text begins

    def line_of(self, node: yaml.Node) -> int:
        """Return the line of the file on which a node begins."""
        return node.start_mark.line + self.first_line


def read_source(source: str | Path) -> RecipeText:
    """Read a recipe from a file or take it as text."""
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"recipe={source!r} is a {type(source).__name__}; expected a path or a "
            "recipe's text; give one of them"
        )
    if isinstance(source, str) and ("\n" in source or "\r" in source):
        return _front_matter(TEXT_NAME, source, required=False)
    file, path = str(source), Path(source).expanduser()
    try:
        wrong = _path_fault(file, path)
    except OSError as error:  # such as a name that is too long
        wrong = f"cannot be opened ({error.strerror}); expected a path; check it"
    if wrong:
        raise _error(file, 1, wrong)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        wrong = f"cannot be read ({error}); expected UTF-8 text; make it readable"
        raise _error(file, 1, wrong) from error
    if path.suffix.lower() == ".md":
        return _front_matter(file, text, required=True)
    return RecipeText(file, text)


def _error(file: str, line: int, text: str, rule: Rule = Rule.FILE) -> RecipeError:
    return RecipeError([Problem(file, line, "", Fault(rule, broken=text))])


def _path_fault(name: str, path: Path) -> str:
    """Say what is wrong with a path; empty for nothing."""
    if name.startswith("zoo:"):
        return (
            "zoo: stubs cannot be loaded, since SparseZoo is gone; expected a local "
            "file; save the recipe and pass its path"
        )
    if path.is_dir():
        return f"is a directory; expected a recipe file; use {_recipes_in(path)}"
    if not path.exists():
        near = _recipes_in(path.parent, like=path.stem)
        return f"there is no such file; expected a recipe; use {near}"
    if path.suffix.lower() not in SUFFIXES:
        return (
            f"suffix={path.suffix or 'none'} is not a recipe's; expected one of "
            f"{', '.join(SUFFIXES)}; rename the file"
        )
    return ""


def _recipes_in(folder: Path, like: str = "") -> str:
    """List some recipes of a folder, where it can be those with a name like a stem."""
    inside = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in inside if path.suffix in SUFFIXES)
    if like:
        stems = nearest(like, {Path(name).stem for name in names}, count=3)
        near = [name for name in names if Path(name).stem in stems]
        names = near or [name for name in names if not name.endswith(".md")]
    return " or ".join(names[:5]) or "the path of a .yaml file"


def _front_matter(file: str, text: str, required: bool) -> RecipeText:
    lines = text.splitlines(keepends=True)
    first = _first_line(lines)
    fence = lines[first].rstrip() if lines else ""
    if fence in _FENCES:
        for end in range(first + 1, len(lines)):
            if lines[end].rstrip() == fence:
                return RecipeText(file, "".join(lines[first + 1 : end]), first + 2)
        wrong = "the front matter that begins here is not closed; expected a second "
        wrong += f"line of {fence}; add it after the recipe"
    else:
        wrong = "the file does not begin with front matter; expected the recipe "
        wrong += "between two lines of ---; put it there"
    # Text may well begin with YAML's own document start and have no second fence.
    if required or fence == "+++":
        raise _error(file, first + 1, wrong)
    return RecipeText(file, text)


def _first_line(lines: list[str]) -> int:
    """Find the first line that is neither empty nor in a comment of HTML.

    SparseML's recipe cards begin with their licence in one. 0 where there is none.
    """
    inside = False
    for number, line in enumerate(lines):
        inside = inside or line.lstrip().startswith("<!--")
        if inside:
            inside = "-->" not in line
        elif line.strip():
            return number
    return 0


def compose(source: RecipeText) -> yaml.MappingNode:
    """Parse the YAML of a recipe into nodes."""
    line = 0
    try:
        root = yaml.compose(source.text, Loader=yaml.SafeLoader)
        if isinstance(root, yaml.MappingNode):
            return root
        what = "is empty" if root is None else f"is a {root.id}, not a mapping"
        wrong = f"the recipe {what}; expected modifiers in a list under a key such as "
        wrong += "'modifiers'; write 'modifiers:' above them"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        wrong = " ".join(part for part in (error.problem, error.context) if part)
        wrong += "; expected valid YAML; correct this line or the one above it"
    except yaml.reader.ReaderError as error:
        line = source.text.count("\n", 0, error.position)
        wrong = f"{error.reason} (character #x{error.character:02x}); expected valid "
        wrong += "YAML; correct this line or the one above it"
    except RecursionError:
        wrong = "the recipe holds lists inside of lists that never seem to end; "
        wrong += "expected plain values; write fewer brackets"
    raise _error(source.file, line + source.first_line, wrong, Rule.YAML)
