"""What the CPU can compute with, and what follows from it for INT8."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# LLVM's names. The first three sum four products of 8 bits in 32 bits at once.
_EXACT_INT8 = ("avx512vnni", "avxvnni", "amx-int8")
_BF16 = ("avx512bf16", "amx-bf16", "bf16")
_KNOWN = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512vnni": "AVX-512 VNNI",
    "avxvnni": "AVX-VNNI",
    "avx512bf16": "AVX-512 BF16",
    "amx-int8": "AMX INT8",
    "amx-bf16": "AMX BF16",
    "neon": "NEON",
    "dotprod": "SDOT",
    "i8mm": "I8MM",
    "bf16": "BF16",
}
_X86 = ("x86_64", "amd64", "i386", "i686")


@dataclass(frozen=True)
class Cpu:
    """A CPU."""

    name: str  # its maker's name for it
    machine: str  # its architecture, as ``platform.machine`` has it
    features: frozenset[str]  # what it has, in LLVM's names
    # The maker's number of its family, None where the system hides it.
    family: str | None = None
    model: str | None = None  # that of the model in it

    @property
    def instruction_sets(self) -> tuple[str, ...]:
        """Those that matter to the engines, in their makers' names."""
        return tuple(name for key, name in _KNOWN.items() if key in self.features)

    @property
    def saturates(self) -> bool:
        """Whether INT8 kernels add pairs of u8 x s8 products in 16 bits.

        ``vpmaddubsw`` of SSSE3, AVX2 and AVX-512 does, and a sum beyond 16 bits stays
        at the largest number; VNNI, AMX and ARM's instructions add in 32 bits.
        """
        x86 = self.machine.lower() in _X86
        return x86 and self.features.isdisjoint(_EXACT_INT8)

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bfloat16; elsewhere torch computes slowly in it."""
        return not self.features.isdisjoint(_BF16)


@cache
def host_cpu() -> Cpu:
    """Describe the CPU that this process runs on."""
    from llvmlite import binding

    has = binding.get_host_cpu_features()
    features = frozenset(name for name, there in has.items() if there)
    told = _cpuinfo()
    name = told.get("model name") or platform.processor() or platform.machine()
    return Cpu(
        name, platform.machine(), features, told.get("cpu family"), told.get("model")
    )


def _cpuinfo() -> dict[str, str]:
    """Read what Linux tells of a core."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = [line.partition(":") for line in text.splitlines()]
    return {key.strip(): value.strip() for key, _, value in rows}
