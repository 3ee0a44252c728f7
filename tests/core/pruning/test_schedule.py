"""Schedules: endpoints, monotony, counts."""

import numpy as np
import pytest

from obert_modifiers.core.pruning import schedule
from tests import reference


@pytest.mark.parametrize("inter_func", schedule.INTERPOLATIONS)
def test_schedule_endpoints_and_monotony(inter_func: str) -> None:
    at = [
        schedule.interpolate_sparsity(t, 2.0, 8.0, 0.3, 0.9, inter_func)
        for t in np.linspace(0.0, 10.0, 101)
    ]
    assert at[0] == at[20] == 0.3
    assert at[80] == at[100] == 0.9
    assert all(b >= a for a, b in zip(at, at[1:], strict=False))


def test_cubic_schedule_is_zhu_and_guptas() -> None:
    for t in np.linspace(0.0, 5.0, 31):
        ours = schedule.interpolate_sparsity(t, 1.0, 4.0, 0.7, 0.97, "cubic")
        assert ours == pytest.approx(reference.cubic(t, 1.0, 4.0, 0.7, 0.97), abs=1e-12)
    # Control: a schedule that starts at twice the increment is not this one.
    assert schedule.interpolate_sparsity(2.0, 1.0, 4.0, 0.7, 0.97) != pytest.approx(
        reference.cubic(3.0, 1.0, 4.0, 0.7, 0.97)
    )


def test_schedule_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="inter_func=square is unknown"):
        schedule.interpolate_sparsity(0, 0, 1, 0, 1, "square")
    with pytest.raises(ValueError, match="sparsity=80 is outside"):
        schedule.sparsity_to_count(80, 10)
    assert schedule.sparsity_to_count(0.8, 10_616_832) == 8_493_466
