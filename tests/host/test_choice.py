"""Which host a process takes, and what it says where SparseML is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from obert_modifiers.host import EXTRA, ONLY_SPARSEML, OWN, SPARSEML
from tests.hosts import ROOT, environment, on_sparseml, python
from tests.recipe.samples import EPOCHS, GMP, SAMPLES, group, one_modifier

SHOWN = """
import sys, warnings
warnings.simplefilter("ignore")
{first}
from obert_modifiers import host, modifiers
cls = modifiers.GMPStarPruningModifier
print(host.name(), "sparseml" in sys.modules, cls.__mro__[-3].__module__)
"""


def shown(first: str = "", **environ: str | bool) -> tuple[str, str]:
    """Return what a process prints of its host, and what it says beside that."""
    done = python("-c", SHOWN.format(first=first), **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def test_without_sparseml_it_is_ours_and_nothing_is_said() -> None:
    found, said = shown(without_sparseml=True)
    assert found == f"{OWN} False obert_modifiers.host.modifier" and not said


@on_sparseml
@pytest.mark.parametrize("first", ["", "import sparseml.pytorch.optim"])
def test_where_sparseml_is_ours_are_its_subclasses(first) -> None:
    found, _ = shown(first)
    assert found.startswith(f"{SPARSEML} True sparseml.")


def test_the_variable_comes_first() -> None:
    assert shown(OBERT_HOST=OWN)[0].startswith(f"{OWN} False")
    done = python("-c", "import obert_modifiers.modifiers", OBERT_HOST="theirs")
    assert "OBERT_HOST=theirs is no host; expected own or sparseml" in done.stderr
    words = "-c", "import obert_modifiers.modifiers"
    assert python(*words, OBERT_HOST=SPARSEML, without_sparseml=True).returncode == 1


def test_a_sparseml_that_does_not_import_is_said_and_passed_over(tmp_path) -> None:
    (tmp_path / "sparseml").mkdir()
    (tmp_path / "sparseml" / "__init__.py").write_text("import imghdr_is_gone\n")
    before = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    found, said = shown(before)
    assert found.startswith(f"{OWN} False")
    assert "SparseML is installed and cannot be imported (ModuleNotFoundError" in said
    assert "imghdr_is_gone" in said and "our own host takes its place" in said


COMMAND = """
import sys
from obert_modifiers import cli
code = cli.main(sys.argv[1:])
print("imported:", "sparseml" in sys.modules)
raise SystemExit(code)
"""


def command(*words: object, **environ: str | bool) -> tuple[int, str, str]:
    done = python("-c", COMMAND, *map(str, words), **environ)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def obs(tmp_path) -> Path:
    path = tmp_path / "obs.yaml"
    path.write_text(one_modifier("OBSPruningModifier", SAMPLES["OBSPruningModifier"]))
    return path


def test_a_command_takes_our_host(obs) -> None:
    for words in (
        [ROOT / "recipes" / "quickstart.yaml"],
        [ROOT / "recipes" / "bert-base_squad_qat-10ep_4block80.yaml"],
        ["--replace", obs],
    ):
        code, out, err = command("recipe", "check", *words)
        assert code == 0, err
        assert "imported: False" in out


@on_sparseml
def test_a_command_takes_sparseml_for_what_it_alone_has(obs) -> None:
    code, out, err = command("recipe", "check", obs)
    assert code == 0, err
    assert "imported: True" in out and "OBSPruningModifier" in out


def test_without_sparseml_ours_stand_in(obs) -> None:
    code, out, err = command("recipe", "check", obs, without_sparseml=True)
    assert code == 0, err
    assert "1 modifiers: OBERTPruningModifier" in out
    assert f"{obs}:2: OBSPruningModifier: !OBERTPruningModifier takes its place" in out


def test_what_only_sparseml_has_is_an_error_with_the_extra(tmp_path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(group(EPOCHS, GMP.replace("GMPruning", "MovementPruning")))
    code, _, err = command("recipe", "check", path, without_sparseml=True)
    assert code == 1
    assert f"{path}:5: MovementPruningModifier: !MovementPruningModifier is a" in err
    assert EXTRA in err


NAMES = """
import json, sys
import obert_modifiers.modifiers
from obert_modifiers.host.bases import Modifier, ScheduledModifierManager
found = {}
for name, text in json.load(sys.stdin).items():
    modifier = next(ScheduledModifierManager.from_yaml(text).iter_modifiers())
    again = Modifier.load_obj(str(modifier))
    found[name] = [modifier.identifier(), str(modifier), again.identifier()]
    found[name].append(str(ScheduledModifierManager.from_yaml(text)))
print(json.dumps(found))
"""


@on_sparseml
def test_names_and_texts_are_the_same_byte_for_byte() -> None:
    common = {name: keys for name, keys in SAMPLES.items() if name not in ONLY_SPARSEML}
    texts = {name: one_modifier(name, keys) for name, keys in common.items()}
    about = "__metadata__:\n  by: someone\n  how: {often: 2}\n"
    texts["with metadata"] = about + texts["EpochRangeModifier"]
    texts["a stage"] = "one:\n" + "".join(
        f"  {line}\n" for line in texts["SetWeightDecayModifier"].splitlines()
    )
    found = []
    for host in (OWN, SPARSEML):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", NAMES],
            input=json.dumps(texts),
            capture_output=True,
            text=True,
            env=environment(OBERT_HOST=host),
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(texts) == 20
    assert found[0] == found[1]
