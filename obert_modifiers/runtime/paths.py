"""The ways of this engine through a CPU: which instructions it multiplies with."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from llvmlite import binding


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
        bound: Products of 8 bits that the instructions allow in a cycle, of two loads.
    """

    name: str
    needs: frozenset[str]
    lanes: int
    registers: int
    pairs: bool = False
    words: bool = True
    bound: float = 0.0

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

    def runs_on(self, features: Iterable[str]) -> bool:
        """Tell whether a CPU with these features runs it."""
        return self.needs <= set(features)


# The fastest first.
PATHS = {
    path.name: path
    for path in (
        Path(
            "avx512vnni",
            frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}),
            *(16, 8),
            bound=2 * 4 * 64 / 5,
        ),
        Path(
            "avxvnni", frozenset({"avx2", "fma", "avxvnni"}), 8, 4, bound=2 * 4 * 32 / 5
        ),
        Path(
            "avx512",
            frozenset({"avx512f", "avx512bw", "avx512vl"}),
            *(16, 8, True),
            bound=2 * 4 * 64 / 5,
        ),
        Path("avx2", frozenset({"avx2", "fma"}), 8, 4, True, bound=2 * 4 * 32 / 6),
        Path(
            "sdot",
            frozenset({"neon", "dotprod"}),
            4,
            8,
            words=False,
            bound=2 * 8 * 16 / 9,
        ),
        Path("portable", frozenset(), 4, 8, words=False),
    )
}


@cache
def host_features() -> frozenset[str]:
    """Return what this CPU and its system allow, in LLVM's names."""
    features = binding.get_host_cpu_features()
    return frozenset(name for name, there in features.items() if there)


def available() -> list[str]:
    """Name the paths that this CPU runs, the fastest first."""
    return [name for name, path in PATHS.items() if path.runs_on(host_features())]


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
