"""Both hosts do the same, bit for bit, and each goes on where the other stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from obert_modifiers.host import OWN, SPARSEML
from tests.host.driven import NOT_SAVED, RUNS
from tests.hosts import on_sparseml, python

pytestmark = on_sparseml
SAVED = [name for name in RUNS if name not in NOT_SAVED]
assert len(RUNS) == 8 and len(SAVED) == 7


class Runs:
    """What processes have written, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, host: str, name: str, after: str = "") -> dict[str, Any]:
        """Return a run on a host, where ``after`` names the host of its beginning."""
        out = self.folder / f"{after}{host}"
        if not out.exists():
            states = [str(self.folder / after)] if after else []
            out.mkdir()
            words = ["-W", "ignore", "-m", "tests.host.driven", str(out), *states]
            done = python(*words, OBERT_HOST=host)
            assert done.returncode == 0, done.stderr
        found = torch.load(out / f"{name.replace(':', '_')}.pt", weights_only=False)
        assert found.pop("host") == host
        found.pop("half", None)
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", RUNS)
def test_steps_masks_losses_and_states_are_the_same(runs, name) -> None:
    ours, theirs = runs.get(OWN, name), runs.get(SPARSEML, name)
    assert len(ours["first"]) + len(ours["seen"]) == 16
    for step, (one, two) in enumerate(zip(ours["seen"], theirs["seen"], strict=True)):
        assert one == two, step
    assert ours == theirs


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize(("first", "second"), [(OWN, SPARSEML), (SPARSEML, OWN)])
def test_a_state_of_the_other_host_is_resumed(runs, name, first, second) -> None:
    whole = runs.get(first, name)
    resumed = runs.get(second, name, after=first)
    for key in ("seen", "end", "names"):
        assert resumed[key] == whole[key], key


def test_runs_that_differ_are_told_apart(runs) -> None:
    one, other = runs.get(OWN, "gmp"), runs.get(OWN, "obert")
    assert one["seen"] != other["seen"] and one["end"] != other["end"]
