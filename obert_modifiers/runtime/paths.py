"""The ways of this engine through a CPU: which instructions it multiplies with."""

from collections.abc import Iterable
from dataclasses import dataclass

from obert_modifiers.cpu import host_cpu


@dataclass(frozen=True)
class Path:
    """One set of instructions.

    Attributes:
        name: As `obert doctor` and :class:`SparseEncoder` have it.
        needs: Features that a CPU must have, in LLVM's names.
        lanes: 32-bit numbers in a vector register.
        registers: How many of them hold the sums of one output for a tile of tokens,
            the most that pays; fewer for a few tokens.
        pairs: Whether products are added in 16 bits, so that weights come in pairs of
            blocks whose sums fit.
        words: Whether pairs of 16-bit numbers multiply and add into 32 bits.
    """

    name: str
    needs: frozenset[str]
    lanes: int
    registers: int
    pairs: bool = False
    words: bool = True

    @property
    def at_once(self) -> int:
        """Keys, or features, whose sums attention holds in registers at a time."""
        room = 16 if self.many_registers else 8
        return max(1, min(4, room // self.registers))

    @property
    def many_registers(self) -> bool:
        """Whether there are 32 vector registers, not 16."""
        return self.lanes != 8

    @property
    def tokens(self) -> int:
        """Tokens of a tile."""
        return self.lanes * self.registers

    @property
    def pause(self) -> tuple[str, list[int]] | None:
        """LLVM's intrinsic for a turn of a loop that waits, and its arguments."""
        if self.name == "portable":
            return None
        if self.name == "sdot":
            return "llvm.aarch64.hint", [1]
        return "llvm.x86.sse2.pause", []

    def runs_on(self, features: Iterable[str]) -> bool:
        """Tell whether a CPU with these features runs it."""
        return self.needs <= set(features)


_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl"})
# The fastest first.
PATHS = {
    path.name: path
    for path in (
        Path("avx512vnni", _AVX512 | {"avx512vnni"}, 16, 8),
        Path("avxvnni", frozenset({"avx2", "fma", "avxvnni"}), 8, 4),
        Path("avx512", _AVX512, 16, 8, pairs=True),
        Path("avx2", frozenset({"avx2", "fma"}), 8, 4, pairs=True),
        Path("sdot", frozenset({"neon", "dotprod"}), 4, 8, words=False),
        Path("portable", frozenset(), 4, 8, words=False),
    )
}


def available() -> list[str]:
    """Name the paths that this CPU runs, the fastest first."""
    features = host_cpu().features
    return [name for name, path in PATHS.items() if path.runs_on(features)]


def choose(name: str | None = None) -> Path:
    """Return a path by name, or the fastest that this CPU runs.

    Raises:
        ValueError: If it is unknown, or this CPU lacks its instructions.
    """
    possible = available()
    name = name or possible[0]
    if name not in possible:
        known = (
            "needs instructions that this CPU lacks" if name in PATHS else "is unknown"
        )
        raise ValueError(
            f"cpu_path={name} {known}; expected {' or '.join(possible)}; leave it out "
            "for the fastest"
        )
    return PATHS[name]
