"""From IR to functions: compiled once for a CPU, then read from a cache."""

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path as File
from struct import Struct

import llvmlite
import numpy as np
from llvmlite import binding

from obert_modifiers.runtime import arithmetic, attention, code, kernels, meeting, paths
from obert_modifiers.runtime.forking import fork_safe_lock
from obert_modifiers.runtime.kernels import Kernel
from obert_modifiers.runtime.meeting import RECORD
from obert_modifiers.runtime.paths import Path

CACHE_VARIABLE = "OBERT_RUNTIME_CACHE"
_RUNNERS = [Kernel(kind) for kind in meeting.PARAMETERS]
# Leaves the core to other threads; None on systems that call it otherwise.
YIELD = (
    ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    if hasattr(os, "sched_yield")
    else None
)
_LOCK = fork_safe_lock(inner=True)  # LLVM's global state is not for several threads


def _machine() -> tuple[binding.TargetMachine, str]:
    # A new one each time: an engine owns the machine that it is made with.
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten()
    name = binding.get_host_cpu_name()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=features, opt=3)
    return machine, f"{machine.triple} {name} {features}"


@cache
def _sources() -> str:
    """Return a digest of the files that write kernels: a change is another kernel."""
    found = hashlib.sha256()
    for module in (arithmetic, attention, code, kernels, meeting, paths):
        found.update(File(module.__file__).read_bytes())
    return found.hexdigest()


def cache_folder() -> File:
    """Return where compiled kernels are kept; ``OBERT_RUNTIME_CACHE`` names another."""
    if named := os.environ.get(CACHE_VARIABLE):
        return File(named)
    base = os.environ.get("XDG_CACHE_HOME") or File.home() / ".cache"
    return File(base) / "obert_modifiers" / "runtime"


class Library:
    """Compiled kernels of one path.

    Args:
        path: The instructions that they use; this CPU must have them.
        kernels: Which.
        tell: Called with a line before anything is compiled.
    """

    def __init__(
        self, path: Path, kernels: Iterable[Kernel], tell: Callable[[str], None]
    ) -> None:
        self.path = path
        self.compiled: list[str] = []  # those that were not in the cache
        self._entries: dict[str, tuple[int, Struct]] = {}
        with _LOCK:
            machine, host = _machine()
            empty = binding.parse_assembly("")
            self._engine = binding.create_mcjit_compiler(empty, _machine()[0])
            wanted = {kernel.name: kernel for kernel in (*kernels, *_RUNNERS)}
            for kernel in wanted.values():
                found = self._object(kernel, machine, host, tell)
                self._engine.add_object_file(binding.ObjectFileRef.from_data(found))
            self._engine.finalize_object()
            for name, kernel in wanted.items():
                address = self._engine.get_function_address(name)
                self._entries[name] = address, _record(kernel)
        call = ctypes.CFUNCTYPE(None, ctypes.c_int64)  # without Python's lock
        self._runners = {one.kind: call(self.entry(one)[0]) for one in _RUNNERS}

    def entry(self, kernel: Kernel) -> tuple[int, Struct]:
        """Return where a kernel's code is, and how its records are packed."""
        return self._entries[kernel.name]

    def run(
        self, records: np.ndarray, kind: str = "sequence", *others: int | None
    ) -> None:
        """Run kernels one after the other, without Python's lock.

        Args:
            records: ``(count, RECORD)`` int64: the address of each, its parameters.
            kind: Of `meeting`'s kernels, the one that runs them.
            others: Its other parameters.
        """
        words = np.array([records.ctypes.data, len(records), *others], np.int64)
        self._runners[kind](words.ctypes.data)

    def _object(
        self,
        kernel: Kernel,
        machine: binding.TargetMachine,
        host: str,
        tell: Callable[[str], None],
    ) -> bytes:
        way = f"{self.path.name} {self.path.registers}"
        key = "\n".join((host, llvmlite.__version__, _sources(), way, kernel.name))
        digest = hashlib.sha256(key.encode()).hexdigest()
        file = cache_folder() / f"{kernel.name}-{digest[:32]}.o"
        try:
            kept = file.read_bytes()
            if kept[:32] == hashlib.sha256(kept[32:]).digest():
                return kept[32:]  # else it was cut or changed: once more
        except OSError:
            pass
        if not self.compiled:
            tell(f"compiling for {self.path.name}, once on this machine")
        self.compiled.append(kernel.name)
        found = compiled(kernel.write(self.path).text(), machine)
        _keep(file, hashlib.sha256(found).digest() + found)
        return found


def _record(kernel: Kernel) -> Struct:
    words = "".join({"i": "q", "f": "f4x"}[one] for one in kernel.parameters)
    return Struct(f"<q{words}{8 * (RECORD - 1 - len(kernel.parameters))}x")


class Program:
    """Kernels that are to run one after the other."""

    def __init__(self, library: Library) -> None:
        """Begin an empty one."""
        self._library = library
        self._records: list[bytes] = []

    def add(self, kernel: Kernel, *values: float) -> None:
        """Add a kernel with its parameters; what they point to must stay."""
        address, record = self._library.entry(kernel)
        self._records.append(record.pack(address, *values))

    def __len__(self) -> int:
        """Count its kernels."""
        return len(self._records)

    def take(self) -> np.ndarray:
        """Return the records of what was added, and begin anew."""
        records = np.frombuffer(b"".join(self._records), np.int64)
        self._records = []
        return records.reshape(-1, RECORD)


def compiled(text: str, machine: binding.TargetMachine) -> bytes:
    """Compile a module to an object file."""
    return machine.emit_object(optimised(text, machine))


def optimised(text: str, machine: binding.TargetMachine) -> binding.ModuleRef:
    """Parse, verify and optimise a module for a machine."""
    module = binding.parse_assembly(text)
    module.triple = machine.triple
    module.verify()
    tuning = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return module


def _keep(file: File, content: bytes) -> None:
    # Whole or not at all, for processes that start at the same time; a folder that
    # cannot be written costs the time of compiling, and nothing else.
    name = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as part:
            part.write(content)
        os.replace(name, file)
    except OSError:
        if name is not None:
            with suppress(OSError):
                os.unlink(name)
