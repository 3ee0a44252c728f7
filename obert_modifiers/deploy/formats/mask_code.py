"""Masks as few bytes: bits, or the gaps between the rarer of kept and pruned.

A mask of n weights of which a share s is pruned needs n * H(s) bits at least, where
H(s) = -s log2 s - (1 - s) log2 (1 - s), unless there is a pattern in it. One bit for
each weight is near that only for s about a half. The gaps between kept weights are
geometrically distributed where the mask has no pattern; a Rice code (Rice 1979, the
powers of two among Golomb's 1966 codes) writes such gaps with about 2 % more than the
bound. Its two halves are two streams here, so that numpy can read it without a loop.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ALL, BITS, GAPS = "all", "bits", "gaps"


@dataclass(frozen=True)
class MaskCode:
    """How a mask is written."""

    kind: str  # ``all`` where everything is kept, ``bits`` or ``gaps``
    count: int = 0  # positions that the gaps lead to
    kept: bool = True  # whether these are the kept ones; else the pruned ones
    low_bits: int = 0  # bits of a gap that are written as they are
    unary_bits: int = 0  # length of the stream that holds the rest of the gaps

    @property
    def size(self) -> int:
        """Bytes of the gaps' two streams."""
        return -(-self.unary_bits // 8) + -(-self.count * self.low_bits // 8)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; ``all`` and ``bits`` need nothing but the kind."""
        return asdict(self) if self.kind == GAPS else {"kind": self.kind}


def entropy_bits(count: int, kept: int) -> float:
    """Return the least bits that a mask without a pattern needs, n * H(s)."""
    if kept in (0, count):
        return 0.0
    share = kept / count
    bits = share * math.log2(share) + (1 - share) * math.log2(1 - share)
    return -count * bits


def choose(mask: np.ndarray) -> tuple[MaskCode, int]:
    """Choose the shortest code for a mask; return it and its bytes."""
    count, kept = mask.size, int(np.count_nonzero(mask))
    if kept == count:
        return MaskCode(ALL), 0
    rare_is_kept = kept <= count - kept
    gaps = _gaps(mask, rare_is_kept)
    number = gaps.size
    middle = int(math.log2(max(1.0, (count - number) / max(1, number))))
    codes = []
    for low in range(max(0, middle - 2), middle + 3):
        unary = int((gaps >> low).sum()) + number
        codes.append(MaskCode(GAPS, number, rare_is_kept, low, unary))
    best = min(codes, key=lambda code: code.size)
    plain = -(-count // 8)
    return (best, best.size) if best.size < plain else (MaskCode(BITS), plain)


def encode(mask: np.ndarray, code: MaskCode) -> np.ndarray:
    """Write a mask."""
    if code.kind == ALL:
        return np.zeros(0, np.uint8)
    if code.kind == BITS:
        return np.packbits(mask)
    gaps = _gaps(mask, code.kept)
    unary = np.zeros(code.unary_bits, np.bool_)
    unary[np.cumsum((gaps >> code.low_bits) + 1) - 1] = True
    places = np.arange(code.low_bits)
    low = (gaps[:, None] >> places) & 1  # (count, low_bits), lowest first
    return np.concatenate([np.packbits(unary), np.packbits(low.astype(np.bool_))])


def decode(stream: np.ndarray, code: MaskCode, count: int) -> np.ndarray:
    """Read a mask."""
    if code.kind == ALL:
        return np.ones(count, np.bool_)
    if code.kind == BITS:
        if stream.size != -(-count // 8):
            raise ValueError(f"{stream.size} bytes for {count} bits")
        return np.unpackbits(stream, count=count).astype(np.bool_)
    if code.kind != GAPS or stream.size != code.size:
        raise ValueError(f"{stream.size} bytes of kind {code.kind!r}")
    split = -(-code.unary_bits // 8)
    ends = np.flatnonzero(np.unpackbits(stream[:split], count=code.unary_bits))
    if ends.size != code.count:
        raise ValueError(f"{ends.size} gaps in place of {code.count}")
    high = np.diff(ends, prepend=-1) - 1
    bits = np.unpackbits(stream[split:], count=code.count * code.low_bits)
    weights = 1 << np.arange(code.low_bits, dtype=np.int64)
    low = bits.reshape(code.count, code.low_bits) @ weights
    places = np.cumsum((high << code.low_bits) + low + 1) - 1
    if places.size and places[-1] >= count:
        raise ValueError(f"a gap leads to {places[-1]} of {count}")
    mask = np.full(count, not code.kept)
    mask[places] = code.kept
    return mask


def _gaps(mask: np.ndarray, kept: bool) -> np.ndarray:
    places = np.flatnonzero(mask if kept else ~mask)
    return np.diff(places, prepend=-1) - 1
