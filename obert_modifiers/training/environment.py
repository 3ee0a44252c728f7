"""What a run is in: launcher, precision, other processes, and a SIGTERM to it."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd

_LOGGER = logging.getLogger(__name__)
# Of accelerate's ways to run, those that shard the parameters.
_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
# What gloo and NCCL say when the other end of a connection is gone.
_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "remote process exited",
)
_AMPERE = (8, 0)  # the first GPUs that have TF32


def check_environment() -> None:
    """Refuse a launcher that was told to shard, before accelerate builds wrappers."""
    for kind in _SHARDING:
        told = os.environ.get(f"ACCELERATE_USE_{kind}", "").lower()
        if told in ("true", "1", "yes"):
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
        "--multi_gpu --num_processes N, or torchrun --nproc_per_node N"
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
    """Let float32 matrix products round their factors to TF32 inside the block."""
    if not wanted:
        yield
        return
    before = torch.get_float32_matmul_precision()  # torch's switch for the process
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def dropout_of(model: nn.Module, probability: float | None) -> Iterator[None]:
    """Let every dropout of a model have this probability in the body, where given."""
    before: list[tuple[nn.Module, str, float]] = []
    if probability is not None:
        for module in model.modules():  # attention has it as a number beside itself
            names = [name for name in vars(module) if "dropout" in name]
            for name in ["p"] if isinstance(module, _DropoutNd) else names:
                value = getattr(module, name)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    before.append((module, name, value))
        if not before:
            raise ValueError(
                f"dropout={probability} has no dropout in the model to replace; "
                "expected a model with dropout; leave it out"
            )
    try:
        for module, name, _ in before:
            setattr(module, name, probability)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def translate_lost_rank_errors() -> Iterator[None]:
    """Raise ConnectionError that says so where another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in _GONE):
            raise
        text = (
            f"another process is gone ({str(error).splitlines()[0][:200]}); expected "
            "all until the end; see its message, resume with --resume_from_checkpoint "
            "last"
        )
        # At once: the launcher ends this process too, with SIGTERM.
        _LOGGER.error(text)
        raise ConnectionError(text) from error


class TrainingStopped(Exception):
    """Training was asked to stop by SIGTERM, and is saved in ``checkpoint``."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"stopped by SIGTERM; saved in {checkpoint}")
        self.checkpoint = checkpoint


@dataclass
class StopRequest:
    """Whether this process listens for a SIGTERM, and has received it."""

    active: bool
    received: bool = False


@contextmanager
def listening(active: bool) -> Iterator[StopRequest]:
    """Take SIGTERM as a request inside the block, in the main thread only."""
    request = StopRequest(active)
    if not active or threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: object) -> None:
        request.received = True

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
