"""Who may import whom: every import of the package against one table."""

import ast
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "obert_modifiers"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE
NUMERIC = {"numpy", "torch"}
HUGGING_FACE = {"accelerate", "datasets", "tokenizers", "transformers"}
SHOW = {"jinja2", "matplotlib", "rich", "typer"}
HOST = {"sparseml", "sparsezoo"}
ENGINES = {"deepsparse", "onnxruntime", "openvino"}


@dataclass(frozen=True)
class Layer:
    """What one layer may import beside itself and the standard library."""

    internal: frozenset[str] = frozenset()
    external: frozenset[str] = frozenset()


def layer(internal: set[str] = frozenset(), external: set[str] = frozenset()) -> Layer:
    return Layer(frozenset(internal), frozenset(external))


# A recipe's text and the values in it, which know nothing of modifiers.
TEXT = {
    f"recipe.{name}"
    for name in ("arguments", "expression", "outline", "problems", "text", "values")
} | {"recipe.writing"}
LOADING = {"core", "host", "modifiers", "recipe", "manager"}
RUNNING = LOADING | {
    "batches",
    "cpu",
    "training",
    "tasks",
    "embedded",
    "resources",
    "sizes",
}
# The first part of a module's name below the package, or a file named in full. What it
# may import is named alike, a file with a dot.
LAYERS = {
    **{f"{name.replace('.', '/')}.py": layer(TEXT, {"yaml"}) for name in TEXT},
    "__init__": layer({"manager"}),
    "resources": layer(),
    "sizes": layer(),
    "cpu": layer(set(), {"llvmlite"}),
    "engines": layer({"cpu"}, ENGINES),
    "kernels": layer(set(), {"numba", "numpy", "torch", "triton"}),
    "core": layer({"kernels"}, {"torch"}),
    "host": layer(TEXT, {"torch", "yaml"}),
    "host/__init__.py": layer(set(), HOST),
    "host/theirs.py": layer(set(), HOST | {"torch"}),
    "modifiers": layer({"kernels", "core", "host"}, {"torch"}),
    "recipe": layer({"core", "host", "modifiers"}, {"torch", "yaml"}),
    "compat/replace.py": layer({"host", "modifiers", "recipe"}, {"yaml"}),
    "manager": layer(
        {"compat.replace", "core", "host", "modifiers", "recipe"}, {"torch", "yaml"}
    ),
    "batches": layer({"core"}, {"torch"}),
    "training": layer(
        {"batches", "core", "recipe", "manager"},
        NUMERIC | {"accelerate", "safetensors"},
    ),
    "trainer": layer(
        {"batches", "core", "manager", "training"}, {"torch", "transformers"}
    ),
    "embedded": layer(),
    "compat": layer(LOADING, {"torch", "yaml"}),
    "compat/environment.py": layer(
        set(), HOST | {"datasets", "numpy", "pkg_resources", "torch"}
    ),
    "compat/metrics.py": layer({"tasks"}, {"numpy", "scipy", "seqeval", "sklearn"}),
    "compat/stacks.py": layer(set(), {"packaging"}),
    "compat/trainer.py": layer({"core", "modifiers"}, HOST),
    "tasks": layer(
        LOADING
        | {"batches", "compat", "cpu", "training", "embedded", "resources", "sizes"},
        NUMERIC | HUGGING_FACE | {"safetensors", "scipy", "seqeval", "sklearn"},
    ),
    "export": layer(
        {"core", "cpu", "engines", "sizes"},
        NUMERIC | {"google", "onnx", "safetensors", "transformers"},
    ),
    "bench": layer({"cpu", "engines", "export"}, NUMERIC | SHOW | {"onnx", "psutil"}),
    "evaluating": layer(RUNNING | {"export"}, NUMERIC | HUGGING_FACE | {"safetensors"}),
    "report": layer(
        RUNNING | {"export"}, NUMERIC | HUGGING_FACE | SHOW | {"safetensors"}
    ),
    "quickstart": layer(
        RUNNING | {"bench", "engines", "export", "report"},
        NUMERIC | HUGGING_FACE | SHOW | {"safetensors", "yaml"},
    ),
    "run": layer({"cli"}),
    "cli": layer(
        RUNNING
        | {"bench", "compat", "engines", "evaluating", "export", "kernels", "report"}
        | {"quickstart", "__init__"},
        NUMERIC | HUGGING_FACE | SHOW | {"psutil", "safetensors", "yaml"},
    ),
}


TEXT_FILES = {f"{name.replace('.', '/')}.py" for name in TEXT}


def layer_of(path: Path) -> str | None:
    """Return the row of a file (relative to the package), None without one."""
    if path.as_posix() in LAYERS:
        return path.as_posix()
    first = path.with_suffix("").parts[0]
    return first if first in LAYERS else None


def imported_modules(tree: ast.AST, module: str) -> set[str]:
    """Return the absolute names of what a module imports, lazily or not."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")[: -node.level]
                base = ".".join([*parts, *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            function = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if function in ("import_module", "__import__", "find_spec") and isinstance(
                first, ast.Constant
            ):
                names.add(str(first.value))
    return names


def violations(path: Path, source: str) -> list[str]:
    """Return the imports of a file (relative to the package) that its row forbids."""
    name = layer_of(path)
    if name is None:
        return [f"{path}: no layer; add its first part to LAYERS"]
    row, own = LAYERS[name], name.split("/")[0]
    module = ".".join((PACKAGE, *path.with_suffix("").parts))
    bad = []
    for imported in sorted(imported_modules(ast.parse(source), module)):
        top, *rest = imported.split(".")
        if top == PACKAGE:
            # `from obert_modifiers import __version__` imports the package itself.
            target = rest[0] if rest and not rest[0].startswith("__") else "__init__"
            near = set() if name in TEXT_FILES else {own}
            file = ".".join(rest[:2])
            allowed = target in row.internal | near | {"__init__"}
            allowed = allowed or file in row.internal
        else:
            allowed = top in row.external or top in sys.stdlib_module_names
        if not allowed:
            bad.append(f"{path}: {name} may not import {imported}")
    return bad


def python_files() -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def test_every_file_has_a_layer_and_imports_what_it_may():
    visited, bad = [], []
    for path in python_files():
        visited.append(ROOT / path)
        bad += violations(path, (ROOT / path).read_text(encoding="utf-8"))
    on_disk = {
        Path(folder) / name
        for folder, _, names in os.walk(ROOT)
        for name in names
        if name.endswith(".py")
    }
    assert set(visited) == on_disk
    assert len(visited) > 10
    assert not bad, "\n".join(bad)


def test_sparseml_is_in_the_host_and_in_its_fixes_alone():
    rows = {name for name, row in LAYERS.items() if row.external & HOST}
    fixes = {"compat/environment.py", "compat/trainer.py"}
    assert rows == {"host/__init__.py", "host/theirs.py"} | fixes
    assert (ROOT / "host" / "theirs.py").is_file()


def test_torch_ao_is_in_one_file_alone():
    found = {
        path.as_posix()
        for path in python_files()
        for name in imported_modules(
            ast.parse((ROOT / path).read_text(encoding="utf-8")), "x"
        )
        if name.startswith(("torch.ao", "torchao"))
    }
    assert found == {"core/fake_quant.py"}


COMPILED = {"numba": {"kernels/_compiled.py"}}
COMPILED["triton"] = {"kernels/_triton_fisher.py", "kernels/_triton_greedy.py"}


@pytest.mark.parametrize("compiler", COMPILED)
def test_compilers_are_in_files_of_their_own_and_imported_when_chosen(compiler):
    found, eager = set(), set()
    for path in python_files():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        module = ".".join((PACKAGE, *path.with_suffix("").parts))
        if compiler in {name.split(".")[0] for name in imported_modules(tree, module)}:
            found.add(path.as_posix())
        tree.body = [
            node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        own = {
            f"{PACKAGE}/{name}"[:-3].replace("/", ".") for name in COMPILED[compiler]
        }
        names = imported_modules(tree, module)
        if module not in own and any(name.startswith(tuple(own)) for name in names):
            eager.add(path.as_posix())
    assert found == COMPILED[compiler]
    assert not eager


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "import sparseml"),
        ("core/x.py", "def f():\n    import transformers.models"),
        ("core/x.py", "from obert_modifiers.modifiers import gmp_star"),
        ("core/x.py", "from obert_modifiers import manager"),
        ("core/x.py", "from ..modifiers import gmp_star"),
        ("core/x.py", "import importlib\nimportlib.import_module('accelerate')"),
        ("kernels/x.py", "from obert_modifiers.core import blocks"),
        ("kernels/x.py", "import yaml"),
        ("modifiers/x.py", "from sparseml.pytorch.optim import Modifier"),
        ("manager.py", "import sparseml"),
        ("training.py", "from obert_modifiers.cli import main"),
        ("tasks/x.py", "import rich"),
        ("cli/x.py", "import sparseml"),
        ("host/bases.py", "import sparseml"),
        ("host/x.py", "from obert_modifiers.recipe.load import load_recipe"),
        ("host/x.py", "from obert_modifiers.recipe import load_recipe"),
        ("recipe/values.py", "from obert_modifiers.recipe import load"),
        ("recipe/values.py", "from obert_modifiers.recipe.check import number"),
        ("manager.py", "from obert_modifiers.compat import trainer"),
        ("unheard_of.py", "import os"),
        ("unheard_of/x.py", "import os"),
    ],
)
def test_a_planted_import_is_found(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "import math, torch\nfrom torch import distributed"),
        ("core/x.py", "from . import blocks\nfrom .blocks import view"),
        ("core/x.py", "from ..kernels import solve"),
        ("modifiers/x.py", "from obert_modifiers.host.bases import Modifier"),
        ("host/theirs.py", "from sparseml.pytorch.optim import Modifier"),
        ("host/x.py", "from obert_modifiers.recipe.values import Resolver"),
        ("manager.py", "from obert_modifiers.compat.replace import replaced"),
        ("cli/x.py", "from obert_modifiers import __version__"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert not violations(Path(path), source)
