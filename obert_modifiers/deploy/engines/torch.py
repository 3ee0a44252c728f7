"""PyTorch, which runs a run's folder as it was trained."""

from pathlib import Path
from typing import Any

from obert_modifiers.cpu import Cpu
from obert_modifiers.deploy.engines.engine import Engine, Opened, Setting


class Torch(Engine):
    """Runs' folders; quantized layers compute on rounded floating-point values."""

    name, title, colour = "torch", "PyTorch", "#888888"
    reads = ("run",)

    def open(self, path: Path, setting: Setting | None = None) -> Opened:
        import torch

        return self.load(torch, path, setting)  # its errors are for users

    def load(self, module: Any, path: Path, setting: Setting | None) -> Opened:
        from obert_modifiers.deploy.run import load_run

        if setting is not None:
            module.set_num_threads(setting.cores)
        run = load_run(path)
        inputs = dict.fromkeys(run.sample(), (None, None))

        def compute(given: Any) -> dict[str, Any]:
            tensors = {name: module.from_numpy(one) for name, one in given.items()}
            with module.inference_mode():
                return dict(run.model(**tensors))

        facts = {"version": module.__version__, "fake_quant": run.quantized}
        return Opened(inputs, (), compute, facts)

    def advice(self, cpu: Cpu) -> str:
        if "amx-bf16" in cpu.features:
            return "bfloat16 pays in training (--bf16)"
        return "bfloat16 (--bf16) is for CPUs with AMX"


ENGINE = Torch()
