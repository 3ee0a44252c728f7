"""Who may import whom: every import of the package against one table."""

import ast
import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
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


LOADING = {"core", "faults", "host", "modifiers", "recipe", "recipe_text"}
RUNNING = LOADING | {"cpu", "training", "tasks", "embedded", "resources", "sizes"}
# The first part of a module's name below the package, or a file named in full.
LAYERS = {
    "__init__": layer({"recipe"}),
    "resources": layer(set(), {"yaml"}),
    "sizes": layer(),
    "hub": layer(set(), {"huggingface_hub"}),
    "cpu": layer(set(), {"llvmlite"}),
    "kernels": layer(set(), {"llvmlite", "numba", "numpy", "torch", "triton"}),
    "faults": layer(),
    "runtime": layer({"cpu"}, {"llvmlite", "numpy", "safetensors", "tokenizers"}),
    "core": layer({"faults", "kernels"}, {"torch"}),
    "recipe_text": layer({"faults"}, {"yaml"}),
    "host": layer({"faults", "recipe_text"}, {"torch", "yaml"}),
    "host/__init__.py": layer({"faults"}, HOST),
    "host/theirs.py": layer(set(), HOST | {"torch"}),
    "modifiers": layer({"core", "faults", "host", "kernels"}, {"torch"}),
    "compat": layer({"faults", "host", "modifiers", "recipe_text"}, {"yaml"}),
    "recipe": layer(
        {"compat", "core", "faults", "host", "modifiers", "recipe_text"},
        {"torch", "yaml"},
    ),
    "training": layer(
        {"core", "recipe"}, NUMERIC | {"accelerate", "safetensors", "transformers"}
    ),
    "embedded": layer(),
    "tasks": layer(
        LOADING
        | {"compat", "cpu", "training", "embedded", "hub", "resources", "sizes"},
        NUMERIC | HUGGING_FACE | {"safetensors", "scipy", "seqeval", "sklearn"},
    ),
    "sparseml_cli": layer(
        {"compat", "core", "host", "modifiers"}, {"packaging", "torch", "yaml"}
    ),
    "sparseml_cli/environment.py": layer(
        set(), HOST | {"datasets", "numpy", "pkg_resources", "torch"}
    ),
    "sparseml_cli/metrics.py": layer({"tasks"}, {"seqeval"}),
    "sparseml_cli/trainer.py": layer({"core", "modifiers"}, HOST),
    "deploy": layer(
        {"core", "cpu", "runtime", "sizes"},
        NUMERIC | ENGINES | {"google", "onnx", "safetensors", "transformers"},
    ),
    "deploy/bench": layer({"cpu", "sizes"}, NUMERIC | SHOW | {"onnx", "psutil"}),
    "deploy/evaluate.py": layer(RUNNING, NUMERIC | HUGGING_FACE | {"safetensors"}),
    "report": layer(
        {"deploy", "recipe", "recipe_text", "sizes"}, {"jinja2", "matplotlib"}
    ),
    "report/card.py": layer({"core", "deploy"}, {"huggingface_hub", "jinja2"}),
    "quickstart": layer({
        "cpu",
        "deploy",
        "recipe",
        "report",
        "resources",
        "sizes",
        "tasks",
    }),
    "run": layer({"cli"}),
    "cli": layer(
        {"__init__", "core", "cpu", "host", "hub", "recipe", "recipe_text", "sizes"}
        | {"tasks", "training"}
        | {"compat", "deploy", "quickstart", "report", "sparseml_cli"},
        {"psutil", "rich", "torch", "transformers", "typer"},
    ),
}


def layer_of(path: Path) -> str | None:
    """Return the row of a file (relative to the package), None without one."""
    if path.as_posix() in LAYERS:
        return path.as_posix()
    parts = path.with_suffix("").parts
    rows = ("/".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((row for row in rows if row in LAYERS), None)


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
    module = module_of(path)
    bad = []
    for imported in sorted(imported_modules(ast.parse(source), module)):
        top, *rest = imported.split(".")
        if top == PACKAGE:
            # `from obert_modifiers import __version__` imports the package itself.
            target = rest[0] if rest and not rest[0].startswith("__") else "__init__"
            allowed = target in row.internal | {own, "__init__"}
        else:
            allowed = top in row.external or top in sys.stdlib_module_names
        if not allowed:
            bad.append(f"{path}: {name} may not import {imported}")
    return bad


SOURCES = {
    path.relative_to(ROOT): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("*.py"))
}


def module_of(path: Path) -> str:
    return ".".join((PACKAGE, *path.with_suffix("").parts))


def test_every_file_has_a_layer_and_imports_what_it_may():
    bad = [
        line for path, source in SOURCES.items() for line in violations(path, source)
    ]
    on_disk = {
        (Path(folder) / name).relative_to(ROOT)
        for folder, _, names in os.walk(ROOT)
        for name in names
        if name.endswith(".py")
    }
    assert set(SOURCES) == on_disk
    assert len(SOURCES) > 10
    assert not bad, "\n".join(bad)


def file_imports() -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports."""
    modules = {module_of(path).removesuffix(".__init__"): path for path in SOURCES}
    found = {}
    for module, path in modules.items():
        names = imported_modules(ast.parse(SOURCES[path]), module_of(path))
        near = {name if name in modules else name.rpartition(".")[0] for name in names}
        found[module] = (near & set(modules)) - {module}
    return found


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of a graph, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_run_one_way():
    files = file_imports()
    assert not circle_in(files)
    rooms = defaultdict(set)
    for module, imported in files.items():
        for room in module.split(".")[1:2]:  # none of the package itself
            near = {name.split(".")[1] for name in imported if "." in name}
            rooms[room] |= near - {room}
    assert not circle_in(rooms)
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_sparseml_is_in_the_host_and_in_its_fixes_only():
    rows = {name for name, row in LAYERS.items() if row.external & HOST}
    fixes = {"sparseml_cli/environment.py", "sparseml_cli/trainer.py"}
    assert rows == {"host/__init__.py", "host/theirs.py"} | fixes
    assert (ROOT / "host" / "theirs.py").is_file()


def test_torch_ao_is_in_one_file_alone():
    found = {
        path.as_posix()
        for path, source in SOURCES.items()
        for name in imported_modules(ast.parse(source), "x")
        if name.startswith(("torch.ao", "torchao"))
    }
    assert found == {"core/quantization/fake_quant.py"}


COMPILED = {"numba": {"kernels/_compiled.py"}}
COMPILED["triton"] = {"kernels/_triton_fisher.py", "kernels/_triton_greedy.py"}


@pytest.mark.parametrize("compiler", COMPILED)
def test_compilers_are_in_files_of_their_own_and_imported_when_chosen(compiler):
    found, eager = set(), set()
    own = {module_of(Path(name)) for name in COMPILED[compiler]}
    for path, source in SOURCES.items():
        tree, module = ast.parse(source), module_of(path)
        if compiler in {name.split(".")[0] for name in imported_modules(tree, module)}:
            found.add(path.as_posix())
        imports = ast.Import | ast.ImportFrom
        tree.body = [node for node in tree.body if isinstance(node, imports)]
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
        ("core/x.py", "from obert_modifiers import recipe"),
        ("core/x.py", "from ..modifiers import gmp_star"),
        ("core/x.py", "import importlib\nimportlib.import_module('accelerate')"),
        ("kernels/x.py", "from obert_modifiers.core import blocks"),
        ("kernels/x.py", "import yaml"),
        ("modifiers/x.py", "from sparseml.pytorch.optim import Modifier"),
        ("recipe/manager.py", "import sparseml"),
        ("training/x.py", "from obert_modifiers.cli import main"),
        ("tasks/x.py", "import rich"),
        ("cli/x.py", "import sparseml"),
        ("host/bases.py", "import sparseml"),
        ("host/x.py", "from obert_modifiers.recipe import load_recipe"),
        ("recipe_text/values.py", "from obert_modifiers.modifiers import keys"),
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
        ("core/x.py", "from . import losses\nfrom .losses import token_loss"),
        ("core/x.py", "from ..kernels import solve"),
        ("modifiers/x.py", "from obert_modifiers.host.bases import Modifier"),
        ("host/theirs.py", "from sparseml.pytorch.optim import Modifier"),
        ("host/x.py", "from obert_modifiers.recipe_text.values import Resolver"),
        ("cli/x.py", "from obert_modifiers import __version__"),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert not violations(Path(path), source)
