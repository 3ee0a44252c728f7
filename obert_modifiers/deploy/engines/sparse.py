"""Our own engine, which leaves the zeros out."""

from pathlib import Path
from typing import Any

from obert_modifiers.cpu import Cpu
from obert_modifiers.deploy.engines.engine import Engine, Opened, Setting
from obert_modifiers.runtime.paths import PATHS


class SparseEngine(Engine):
    """What `obert export --format sparse` writes; any sizes."""

    name, title, colour = "sparse", "obert", "#228833"
    reads = ("sparse",)

    installed = True

    def package(self) -> Any:
        from obert_modifiers import runtime

        return runtime

    def load(self, module: Any, path: Path, setting: Setting | None) -> Opened:
        cores = None if setting is None else setting.cores
        encoder = module.SparseEncoder.load(path, threads=cores)
        names = ["input_ids", "attention_mask"]
        if encoder.about["types"] > 1:
            names.append("token_type_ids")
        outputs = tuple(name for one in encoder.outputs for name in one.names)
        return Opened(
            dict.fromkeys(names, (None, None)),
            outputs,
            lambda given: encoder(**given),
            {"path": encoder.path.name, "weights_bytes": encoder.size_bytes},
        )

    def advice(self, cpu: Cpu) -> str:
        names = [name for name, one in PATHS.items() if one.runs_on(cpu.features)]
        return f"leaves zeros out: pays for pruned models ({', '.join(names)})"


ENGINE = SparseEngine()
