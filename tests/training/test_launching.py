"""Launchers that shard the parameters are refused before anything is loaded."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from obert_modifiers import tasks
from obert_modifiers.training.environment import check_environment, check_not_sharded
from tests.modifiers.table import make_model
from tests.training.toy import GMP, run

WAY_OUT = "accelerate launch --multi_gpu --num_processes N, or torchrun"


PLUGINS = ["FSDP", "DEEPSPEED", "MEGATRON_LM"]


@pytest.mark.parametrize("kind", [*PLUGINS, "PARALLELISM_CONFIG"])
def test_what_accelerate_was_told_is_refused(tmp_path, monkeypatch, kind) -> None:
    name = f"ACCELERATE_USE_{kind}"
    monkeypatch.setenv(name, "false")
    check_environment()
    monkeypatch.setenv(name, "true")
    message = f"distributed_type={kind} .*{WAY_OUT}"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "loop", GMP)
    with pytest.raises(ValueError, match=message):
        tasks.main("text_classification", ["--output_dir", str(tmp_path / "task")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", PLUGINS)
def test_a_plugin_is_refused(tmp_path, monkeypatch, kind) -> None:
    """A script of one's own that gives accelerate a plugin sets no variable."""
    sharded = property(lambda self: DistributedType(kind))
    monkeypatch.setattr(Accelerator, "distributed_type", sharded)
    with pytest.raises(ValueError, match=f"distributed_type={kind} shards"):
        run(tmp_path, GMP)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_parameters_that_are_sharded_already_are_refused(tmp_path) -> None:
    """As ``fully_shard`` leaves them."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = make_model()
        check_not_sharded(Accelerator(cpu=True), model)
        mesh = init_device_mesh("cpu", (1,))
        weight = distribute_tensor(model.head.weight.detach(), mesh)
        model.head.weight = torch.nn.Parameter(weight)
        with pytest.raises(ValueError, match="FSDP2 shards.*head.weight is sharded"):
            check_not_sharded(Accelerator(cpu=True), model)
    finally:
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
