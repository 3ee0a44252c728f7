"""What the algorithms ask of torch.distributed."""

from obert_modifiers.core.distributed.parallel import (
    OtherProcessFailed,
    ran_out_of_memory,
    share_of,
)


def test_shares_sum_up() -> None:
    for ranks in (1, 2, 3, 7):
        assert sum(share_of(10, rank, ranks) for rank in range(ranks)) == 10


def test_memory_that_lacks_in_another_process_is_known() -> None:
    assert not ran_out_of_memory(OtherProcessFailed())
    assert ran_out_of_memory(OtherProcessFailed(out_of_memory=True))
