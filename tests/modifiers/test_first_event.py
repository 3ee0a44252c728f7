"""Sub-steps of the first event alone, with draws that no other event has."""

from dataclasses import replace

import pytest
import torch

from obert_modifiers.modifiers import NMPruningModifier, OBERTPruningModifier
from tests.modifiers.driving import drive
from tests.modifiers.table import SCHEDULE, make_model, make_source

OBERT = SCHEDULE | {"num_grads": 24, "fisher_block_size": 20}
N_M = {"mask_type": "1:4", "start_epoch": 1.0, "end_epoch": 3.0, "gradual": "by_n"}
N_M |= {"score": "obs", "num_grads": 24, "fisher_block_size": 24}


def draws(cls, stop=None, **keys):
    """Drive all events, perhaps with a break; returns their draws and gradients."""
    seen, source = [], make_source()

    def batches(request):
        seen.append(request.draw)
        return source.batches(request)

    def start():
        model, modifier = make_model(), cls(**keys)
        modifier.initialize(model, gradient_source=replace(source, batches=batches))
        return modifier, model, torch.optim.Adam(model.parameters(), lr=1e-2)

    run = start()
    drive(*run, stop or 14)
    if stop:
        state, (modifier, *others) = run[0].state_dict(), start()
        modifier.load_state_dict(state)
        run = modifier, *others
        drive(*run, 14, stop)
    return seen, [event.num_gradients for event in run[0].events]


@pytest.mark.parametrize(
    ("first", "count", "expected"),
    [
        (None, 1, [0, 1, 2, 3, 4]),
        (3, 1, [0, 1, 2, 3, 4, 5, 6]),
        (1, 2, [0, 2, 3, 4, 5, 6, 7, 8, 9]),
        (3, 2, [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_the_first_event_has_sub_steps_of_its_own(first, count, expected) -> None:
    keys = OBERT | {"first_recomputations": first, "num_recomputations": count}
    found, gradients = draws(OBERTPruningModifier, **keys)
    assert found == expected and len(set(found)) == len(found)
    assert gradients == [24 * (first or count), *[24 * count] * 4]
    assert draws(OBERTPruningModifier, 7, **keys) == (found, gradients)


def test_n_m_has_them_too_and_old_identifiers_stay() -> None:
    found, gradients = draws(NMPruningModifier, first_recomputations=2, **N_M)
    assert found == [0, 1, 2, 3] and gradients == [48, 24, 24]
    for cls, keys in ((OBERTPruningModifier, OBERT), (NMPruningModifier, N_M)):
        one = cls(**keys)
        assert "first_recomputations" not in one.props(only_serializable=True)
        assert one.identifier() == cls(**keys, first_recomputations=None).identifier()
