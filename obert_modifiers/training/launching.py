"""Ways to share a model that a recipe cannot follow, and processes that are gone."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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
# What gloo and NCCL say when the other end of a connection is gone.
_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "remote process exited",
)
_SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM")


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Refuse a launcher that was told to shard the parameters.

    It is called before anything is loaded, as accelerate builds the wrappers early.
    """
    environment = os.environ if environment is None else environment
    for name, kind in _SWITCHES.items():
        if environment.get(name, "").lower() in ("true", "1", "yes"):
            raise ValueError(refusal(kind))


def check_compiler(backend: str | None) -> None:
    """Check the name of a backend of ``torch.compile``."""
    known = [one.value.lower() for one in DynamoBackend]
    if backend is not None and backend.lower() not in known:
        raise ValueError(
            f"torch_compile={backend} is unknown; expected one of {', '.join(known)}; "
            "use inductor"
        )


def check_whole(accelerator: Accelerator, model: nn.Module) -> None:
    """Refuse a model of which each process has a part alone."""
    kind = str(getattr(accelerator.distributed_type, "value", "NO"))
    if kind in _SHARDING:
        raise ValueError(refusal(kind))
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise ValueError(f"{refusal('FSDP2')}; {name} is sharded")


def is_lost_peer(error: BaseException) -> bool:
    """Tell whether an exchange failed because another process is gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _GONE)


@contextmanager
def peers_named() -> Iterator[None]:
    """Say that another process is gone where an exchange with it fails."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        text = (
            f"another process is gone ({str(error).splitlines()[0][:200]}); expected "
            "all until the end; see its message, or whether it was killed for memory; "
            "go on with --resume_from_checkpoint last"
        )
        # At once: the launcher ends this process too, with SIGTERM.
        _LOGGER.error(text)
        raise ConnectionError(text) from error


def refusal(kind: str) -> str:
    """Say why sharded parameters are refused, and what to use instead."""
    return (
        f"distributed_type={kind} shards the parameters; expected whole ones, as masks "
        "and Fisher blocks are made of them; train with DDP: accelerate launch "
        "--multi_gpu --num_processes N, or torchrun --nproc_per_node N (the Fisher "
        "state is shared over the processes anyway)"
    )
