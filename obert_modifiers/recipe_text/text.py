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
    """The YAML of a recipe and where it came from.

    Attributes:
        file: Path of the recipe as it was given, or ``<recipe text>``.
        text: The YAML, without the fences of front matter.
        first_line: Line of the file in which ``text`` begins, from 1.
    """

    file: str
    text: str
    first_line: int = 1

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
    path = Path(source).expanduser()
    try:
        wrong = _path_fault(str(source), path)
    except OSError as error:  # such as a name that is too long
        wrong = f"cannot be opened ({error.strerror})", "a path", "check it"
    if wrong:
        raise _error(str(source), 1, *wrong)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        wrong = f"cannot be read ({error})", "UTF-8 text", "make it readable"
        raise _error(str(source), 1, *wrong) from error
    if path.suffix.lower() == ".md":
        return _front_matter(str(source), text, required=True)
    return RecipeText(str(source), text)


def _error(
    file: str, line: int, broken: str, expected: str, fix: str, rule: Rule = Rule.FILE
) -> RecipeError:
    fault = Fault(rule, broken=broken, expected=expected, fix=fix)
    return RecipeError([Problem(file, line, "", fault)])


def _path_fault(name: str, path: Path) -> tuple[str, str, str] | None:
    """Return what is wrong with a path, what is expected, and what to do."""
    if name.startswith("zoo:"):
        wrong = "zoo: stubs cannot be loaded, since SparseZoo is gone"
        return wrong, "a local file", "save the recipe and pass its path"
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES)
        return "is a directory", "a recipe file", f"use {_choice(inside)}"
    if not path.exists():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        names = sorted(p.name for p in beside if p.suffix in SUFFIXES)
        stems = nearest(path.stem, {Path(name).stem for name in names}, count=3)
        near = [name for name in names if Path(name).stem in stems]
        near = near or [name for name in names if not name.endswith(".md")]
        return "there is no such file", "a recipe", f"use {_choice(near)}"
    if path.suffix.lower() not in SUFFIXES:
        wrong = f"suffix={path.suffix or 'none'} is not a recipe's"
        return wrong, f"one of {', '.join(SUFFIXES)}", "rename the file"
    return None


def _choice(names: list[str]) -> str:
    return " or ".join(names[:5]) or "the path of a .yaml file"


def _front_matter(file: str, text: str, required: bool) -> RecipeText:
    lines = text.splitlines(keepends=True)
    first = _first_line(lines)
    fence = lines[first].rstrip() if lines else ""
    if fence in _FENCES:
        for number in range(first + 1, len(lines)):
            if lines[number].rstrip() == fence:
                inside = "".join(lines[first + 1 : number])
                return RecipeText(file, inside, first + 2)
        wrong = "the front matter that begins here is not closed"
        wrong = wrong, f"a second line of {fence}", "add it after the recipe"
    else:
        wrong = "the file does not begin with front matter"
        wrong = wrong, "the recipe between two lines of ---", "put it there"
    # Text may well begin with YAML's own document start and have no second fence.
    if required or fence == "+++":
        raise _error(file, first + 1, *wrong)
    return RecipeText(file, text)


def _first_line(lines: list[str]) -> int:
    """Find the first line that is neither empty nor in a comment of HTML.

    SparseML's recipe cards begin with their licence in one.

    Returns:
        Its index; 0 where there is none.
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
    try:
        root = yaml.compose(source.text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _syntax_error(source, error) from error
    except RecursionError as error:
        wrong = "the recipe holds lists inside of lists that never seem to end"
        wrong = wrong, "plain values", "write fewer brackets"
        raise _error(source.file, source.first_line, *wrong, Rule.YAML) from error
    if isinstance(root, yaml.MappingNode):
        return root
    what = "is empty" if root is None else f"is a {root.id}, not a mapping"
    expected = "modifiers in a list under a key such as 'modifiers'"
    wrong = f"the recipe {what}", expected, "write 'modifiers:' above them"
    raise _error(source.file, source.first_line, *wrong, Rule.YAML)


def _syntax_error(source: RecipeText, error: yaml.YAMLError) -> RecipeError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.problem, error.context) if part)
        line = mark.line if mark else 0
    else:  # a character that YAML does not allow
        what = f"{error.reason} (character #x{error.character:02x})"
        line = source.text.count("\n", 0, error.position)
    wrong = what, "valid YAML", "correct this line or the one above it"
    return _error(source.file, line + source.first_line, *wrong, Rule.YAML)
