"""Every modifier on two processes with uneven last batches: the same bits on both."""

import json
from pathlib import Path

import pytest

from tests.modifiers.driving import name_of
from tests.modifiers.table import PRUNERS, TABLE
from tests.training.processes import torchrun
from tests.training.two_ranks import STEPS, first_masks


def two_processes(folder: Path, *words: str) -> list:
    done = torchrun("-m", "tests.training.two_ranks", folder, *words, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_the_same_bits_at_every_step_and_one_processes_first_masks(tmp_path) -> None:
    (steps, first), (others, others_first) = two_processes(tmp_path)
    assert len(steps) == len(TABLE) == 27 and len(first) == len(PRUNERS) == 15
    for name, bits in steps.items():
        assert len(bits) == STEPS or name.startswith("EarlyStopping")
        pairs = enumerate(zip(bits, others[name], strict=True))
        differ = [step for step, (one, other) in pairs if one != other]
        assert not differ, f"{name} differs after steps {differ}"
        assert len(set(bits)) == len(bits)
    for row in PRUNERS:
        name = name_of(row)
        alone = first_masks(row, tmp_path / "alone")
        assert first[name] == others_first[name] == alone, name


@pytest.mark.slow
def test_a_weight_that_one_process_alone_prunes_is_seen(tmp_path) -> None:
    """Negative control."""
    (steps, _), (others, _) = two_processes(tmp_path, "planted")
    [bits], [other] = steps.values(), others.values()
    same = [a == b for a, b in zip(bits, other, strict=True)]
    assert all(same[:4]) and not any(same[4:])


@pytest.mark.slow
def test_two_processes_of_a_compiled_model(tmp_path) -> None:
    """The bits are those of the model that is not compiled, on both."""
    (compiled, _), (other, _) = two_processes(tmp_path, "compiled")
    (tmp_path / "plain").mkdir()
    (plain, _), _ = two_processes(tmp_path / "plain", "whole")
    assert compiled == other == plain and len(plain) == 1
