"""Blocks and groups: the words for them, their order, and what is refused."""

import pytest
import torch

from obert_modifiers.core.patterns import (
    UNSTRUCTURED,
    check_block_size,
    parse_mask_type,
)
from obert_modifiers.core.pruning import blocks
from obert_modifiers.core.pruning.blocks import make_layout
from tests.core.models import (
    GROUP_PATTERNS,
    MIXED_NAMES,
    indices_of,
    make_mixed,
    mixed_targets,
)


@pytest.mark.parametrize(("numel", "width"), [(1, 1), (1, 8), (96, 48), (97, 48)])
def test_blocks_round_trip(numel: int, width: int) -> None:
    values = torch.arange(1.0, numel + 1)
    cut = blocks.to_blocks(values, width)
    assert cut.shape == (blocks.count_blocks(numel, width), width)
    assert cut.sum() == values.sum()  # padding is zero
    assert torch.equal(blocks.from_blocks(cut, numel), values)


def test_blocks_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="fisher_block_size=0 is smaller than 1"):
        blocks.count_blocks(4, 0)
    with pytest.raises(ValueError, match="numel=0 is smaller than 1"):
        blocks.count_blocks(0, 4)


@pytest.mark.parametrize(
    ("text", "kind", "size", "unit", "limit"),
    [
        ("unstructured", "unstructured", 1, 1, 1.0),
        ("block4", "block", 4, 4, 1.0),
        ("block:1x1", "unstructured", 1, 1, 1.0),
        ("block:16x2", "block", 32, 32, 1.0),
        ("2:4", "n_m", 4, 2, 0.5),
        ("1:4", "n_m", 4, 3, 0.75),
        ("10:16", "n_m", 16, 6, 0.375),
    ],
)
def test_mask_types(text, kind, size, unit, limit) -> None:
    found = parse_mask_type(text)
    figures = (found.kind, found.group_size, found.unit, found.limit)
    assert (found.name, *figures) == (text, kind, size, unit, limit)


KNOWN = "expected one of unstructured, block4, block:RxC, N:M; use"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blok4", f"is unknown; {KNOWN} block4"),
        ("block:2", f"is unknown; {KNOWN} block:2x2"),
        ("0:4", f"is unknown; {KNOWN} 2:4"),
        ("", f"is unknown; {KNOWN} unstructured"),
        ("4:2", "keeps 4 of every 2 weights; expected fewer kept than M; use 2:4"),
        ("4:4", "keeps 4 of every 4 weights; expected fewer kept than M; use 2:4"),
        ("1:1", "keeps 1 of every 1 weights; expected fewer kept than M; use 1:2"),
    ],
)
def test_mask_types_that_are_refused(text, message) -> None:
    with pytest.raises(ValueError) as error:
        parse_mask_type(text)
    assert str(error.value) == f"mask_type={text} {message}"


def test_groups_that_do_not_fit_are_refused_by_name() -> None:
    four, tiles, pairs = map(parse_mask_type, ("block4", "block:3x2", "2:4"))
    message = r"mask_type=block4 .* 10 input columns of a.weight, .* a multiple of 4;"
    with pytest.raises(ValueError, match=message):
        make_layout(four, "a.weight", (8, 10))
    with pytest.raises(ValueError, match="8 output rows of a.weight"):
        make_layout(tiles, "a.weight", (8, 10))
    with pytest.raises(ValueError, match="6 input columns of a.weight"):
        make_layout(pairs, "a.weight", (6, 8), transposed=True)
    with pytest.raises(ValueError, match=r"mask_type=2:4 has no groups in a.bias"):
        make_layout(pairs, "a.bias", (8,))
    assert make_layout(UNSTRUCTURED, "a.bias", (8,)).shape == (8, 1)
    message = "fisher_block_size=50 .* group_size=4 .mask_type: block4.; use 48$"
    with pytest.raises(ValueError, match=message):
        check_block_size(50, four)
    with pytest.raises(ValueError, match="use 6$"):
        check_block_size(4, tiles)


@pytest.mark.parametrize("text", GROUP_PATTERNS)
@pytest.mark.parametrize("name", MIXED_NAMES)
def test_layout_lists_the_groups_of_the_definition(text: str, name: str) -> None:
    pattern = parse_mask_type(text)
    target = next(t for t in mixed_targets(make_mixed()) if t.name == name)
    layout = target.layout(pattern)
    flat = torch.arange(target.parameter.numel())
    assert layout.groups(flat.reshape(target.parameter.shape)).tolist() == indices_of(
        target, pattern
    )
    if name == "turned.weight":  # control: as if it were output x input
        wrong = blocks.GroupLayout(pattern, layout.shape)
        assert not torch.equal(wrong.arrange(flat), layout.arrange(flat))
    stack = torch.stack([flat, flat + 1000])  # two gradients
    assert torch.equal(layout.restore(layout.arrange(stack)), stack)
    assert torch.equal(layout.arrange(stack)[1], layout.arrange(flat) + 1000)


def test_layout_of_rows_is_the_tensor_itself() -> None:
    values = torch.rand(3, 48)
    assert make_layout(parse_mask_type("2:4"), "a", (4, 12)).arrange(values) is values
