"""Structures of sparsity, as a recipe names them; without torch."""

import difflib
import re
from dataclasses import dataclass

MASK_TYPES = ("unstructured", "block4", "block:RxC", "N:M")
_EXAMPLES = ("unstructured", "block4", "block:2x2", "1:4", "2:4", "4:8")
_BLOCK = re.compile(r"block:([1-9][0-9]*)x([1-9][0-9]*)")
_N_M = re.compile(r"([1-9][0-9]*):([1-9][0-9]*)")


@dataclass(frozen=True)
class MaskPattern:
    """Structure of the sparsity, by the recipe's word for it, such as ``block4``.

    Groups have R output rows and C input columns, M for N:M. With ``n_m`` N of every M
    weights stay along the input dimension; else groups live or die as a whole.
    """

    name: str
    rows: int = 1
    columns: int = 1
    n_m: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """``unstructured``, ``block`` or ``n_m``."""
        if self.n_m:
            return "n_m"
        return "block" if self.group_size > 1 else "unstructured"

    @property
    def group_size(self) -> int:
        """Weights Q of a group; M for N:M."""
        return self.rows * self.columns

    @property
    def unit(self) -> int:
        """Weights that a group loses: Q, or M - N."""
        return self.group_size - (self.n_m[0] if self.n_m else 0)

    @property
    def limit(self) -> float:
        """Highest sparsity: 1, or (M - N) / M."""
        return self.unit / self.group_size


UNSTRUCTURED = MaskPattern("unstructured")


def parse_mask_type(text: str) -> MaskPattern:
    """Return the pattern of a recipe's ``mask_type``.

    ``block4`` and ``block:RxC`` are groups of 1 x 4 and R x C weights (output rows x
    input columns); ``N:M`` keeps N of every M weights along the input dimension.

    Raises:
        ValueError: If the word is unknown, with the nearest one, or keeps everything.
    """
    if text == "unstructured":
        return UNSTRUCTURED
    if text == "block4":
        return MaskPattern(text, columns=4)
    if block := _BLOCK.fullmatch(text):
        return MaskPattern(text, int(block[1]), int(block[2]))
    if found := _N_M.fullmatch(text):
        kept, size = int(found[1]), int(found[2])
        if kept >= size:
            use = f"{size}:{kept}" if kept > size else f"{max(size // 2, 1)}:{size}"
            raise ValueError(
                f"mask_type={text} keeps {kept} of every {size} weights; expected "
                f"fewer kept than M; use {'1:2' if use == '1:1' else use}"
            )
        return MaskPattern(text, columns=size, n_m=(kept, size))
    near = difflib.get_close_matches(text, _EXAMPLES, n=1, cutoff=0.4)
    raise ValueError(
        f"mask_type={text} is unknown; expected one of {', '.join(MASK_TYPES)}; use "
        f"{(near or _EXAMPLES)[0]}"
    )


def check_block_size(fisher_block_size: int, pattern: MaskPattern) -> None:
    """Raise if a group would straddle two Fisher blocks."""
    size = pattern.group_size
    if fisher_block_size % size:
        raise ValueError(
            f"fisher_block_size={fisher_block_size} is not a multiple of "
            f"group_size={size} (mask_type: {pattern.name}); use "
            f"{max(fisher_block_size // size, 1) * size}"
        )
