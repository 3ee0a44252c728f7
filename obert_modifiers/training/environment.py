"""What a run is in: launcher, precision, other processes, and a SIGTERM to it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn
from torch.distributed.tensor import DTensor

_LOGGER = logging.getLogger(__name__)
# accelerate launch tells its processes by these, and builds the wrappers from them.
_SWITCHES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "PARALLELISM_CONFIG",
}
_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
# What gloo and NCCL say when the other end of a connection is gone.
_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "remote process exited",
)
_AMPERE = (8, 0)  # the first GPUs that have TF32


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Refuse a launcher that was told to shard the parameters.

    It is called before anything is loaded, as accelerate builds the wrappers early.
    """
    environment = os.environ if environment is None else environment
    for name, kind in _SWITCHES.items():
        if environment.get(name, "").lower() in ("true", "1", "yes"):
            raise ValueError(refusal(kind))


def check_not_sharded(accelerator: Accelerator, model: nn.Module) -> None:
    """Refuse a model of which each process has only a part."""
    kind = str(getattr(accelerator.distributed_type, "value", "NO"))
    if kind in _SHARDING:
        raise ValueError(refusal(kind))
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise ValueError(f"{refusal('FSDP2')}; {name} is sharded")


def refusal(kind: str) -> str:
    """Say why sharded parameters are refused, and what to use instead."""
    return (
        f"distributed_type={kind} shards the parameters; expected whole ones, as masks "
        "and Fisher blocks are made of them; train with DDP: accelerate launch "
        "--multi_gpu --num_processes N, or torchrun --nproc_per_node N (the Fisher "
        "state is shared over the processes anyway)"
    )


def check_compiler(backend: str | None) -> None:
    """Check the name of a backend of ``torch.compile``, or None."""
    known = [one.value.lower() for one in DynamoBackend]
    if backend is not None and backend.lower() not in known:
        raise ValueError(
            f"torch_compile={backend} is unknown; expected one of {', '.join(known)}; "
            "use inductor"
        )


def check_tf32(device: torch.device) -> None:
    """Refuse TF32 on anything but a CUDA GPU of the Ampere generation or later."""
    if device.type != "cuda":
        why = f"runs on a {device.type.upper()}"
    elif torch.cuda.get_device_capability(device) < _AMPERE:
        why = f"runs on {torch.cuda.get_device_name(device)}, which has no TF32,"
    else:
        return
    raise ValueError(
        f"tf32=True {why} here; expected an Ampere GPU or a later one; leave it out"
    )


@contextmanager
def products_in_tf32(wanted: bool) -> Iterator[None]:
    """Let float32 matrix products round their factors to TF32 inside the block.

    It is torch's switch for the process, and is as it was afterwards.
    """
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        if wanted:
            torch.set_float32_matmul_precision(before)


def is_lost_rank(error: BaseException) -> bool:
    """Tell whether an exchange failed because another process is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _GONE)


@contextmanager
def translate_lost_rank_errors() -> Iterator[None]:
    """Raise ConnectionError that says so where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        text = (
            f"another process is gone ({str(error).splitlines()[0][:200]}); expected "
            "all until the end; see its message, or whether it was killed for memory; "
            "go on with --resume_from_checkpoint last"
        )
        # At once: the launcher ends this process too, with SIGTERM.
        _LOGGER.error(text)
        raise ConnectionError(text) from error


class TrainingStopped(Exception):
    """Training was asked to stop by SIGTERM, and has saved where it is.

    Attributes:
        checkpoint: The folder to resume from.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped by SIGTERM; saved in {checkpoint}")
        self.checkpoint = checkpoint


class StopRequest:
    """Whether this process listens for a SIGTERM, and has received it."""

    def __init__(self, active: bool) -> None:
        self.active, self.received = active, False

    def _receive(self, number: int, frame: Any) -> None:
        self.received = True


@contextmanager
def listening(active: bool) -> Iterator[StopRequest]:
    """Take SIGTERM as a request inside the block, in the main thread only."""
    request = StopRequest(active)
    if not active or threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = signal.signal(signal.SIGTERM, request._receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
