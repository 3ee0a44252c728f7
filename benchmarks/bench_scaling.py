"""One pruning event of the embedded encoder on 1, 2 and more processes.

The same gradient samples, shared out over the processes, and the Fisher blocks shared
out too. Where there are two CUDA devices or more, each process has one; otherwise all
are on the CPU, each with one thread of torch and of the compiled kernels, the single
process too, so that the times compare.

    python benchmarks/bench_scaling.py [--quick] [--json FILE] [--processes 1 2]

``ratio`` is the seconds of one process over those of the most processes.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import _common as common
import _encoder as encoder
import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from obert_modifiers.core.distributed.memory import peak_memory
from obert_modifiers.core.options import SecondOrderConfig
from obert_modifiers.core.pruning.event import PruningEvent, plan_targets
from obert_modifiers.core.pruning.fisher_state import FisherState
from obert_modifiers.core.pruning.selection import Pool, make_pools

NUM_GRADS, QUICK_GRADS, SPARSITY = 256, 64, 0.8
MOST_PROCESSES = (1, 2, 4, 8)
CPU_PROCESSES = (1, 2)


class TimedEvent(PruningEvent):
    """An event that tells the seconds of its parts.

    Attributes:
        seconds: By part.
    """

    def run(self) -> list[Tensor]:
        """Collect, select and update; nothing is written.

        Returns:
            The masks.
        """
        self.seconds: dict[str, float] = {}
        started = self._now()
        for _ in self.state.sweep():
            pass
        self.seconds["gradients_and_fisher"] = self._now() - started
        numels = [mask.numel() for mask in self.state.masks]
        pools = make_pools(numels, [SPARSITY] * len(numels), True)
        found, _ = self.best_outcome(pools)
        self.seconds["total"] = self._now() - started
        return found.masks

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _select(self, pools: list[Pool], damp: float) -> list[Tensor]:
        started = self._now()
        found = super()._select(pools, damp)
        self.seconds["selection"] = self._now() - started
        return found

    def _update(self, masks: list[Tensor], damp: float) -> Any:
        started = self._now()
        found = super()._update(masks, damp)
        self.seconds["update"] = self._now() - started
        return found


def make_event(device: torch.device, num_grads: int, most: int | None) -> TimedEvent:
    """Load the encoder and prepare an event.

    Args:
        device: Where it works.
        num_grads: Gradients m, over all processes.
        most: Prune the first parameters only; None prunes all.

    Returns:
        The event.
    """
    model, data = encoder.dense_model().to(device), encoder.task_data()
    targets = encoder.encoder_targets(model)[:most]
    masks = [torch.ones_like(t.parameter, dtype=torch.bool) for t in targets]
    config = SecondOrderConfig(num_grads=num_grads)
    plan = plan_targets(targets, config)
    source = encoder.source_of(model, data)
    return TimedEvent(FisherState(model, targets, masks, plan, config, source))


def work(rank: int, processes: int, on_gpu: bool, num_grads: int, folder: str) -> None:
    """Be one of the processes.

    Args:
        rank: Which.
        processes: How many there are.
        on_gpu: Whether each has a CUDA device.
        num_grads: Gradients m, over all processes.
        folder: Where they meet, and leave what they found.
    """
    torch.set_num_threads(1)
    one_numba_thread()
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
    )
    try:
        make_event(device, 8 * processes, 1).run()  # compile and warm up
        event = make_event(device, num_grads, None)
        dist.barrier()
        masks = event.run()
        bits = torch.cat([mask.reshape(-1) for mask in masks]).cpu().numpy()
        found = {
            "seconds": event.seconds,
            "turns": event.plan.turns,
            "planned_fisher_bytes": event.plan.state_bytes,
            "peak_memory_bytes": peak_memory(device),
            "masks": torch.from_numpy(np.packbits(bits)),
        }
        torch.save(found, f"{folder}/rank{rank}.pt")
    finally:
        dist.destroy_process_group()


def one_numba_thread() -> None:
    """Let the compiled kernels of this process use one thread, where there are any."""
    try:
        import numba
    except ImportError:
        return
    numba.set_num_threads(1)


def measure(processes: int, on_gpu: bool, num_grads: int) -> dict[str, Any]:
    """Run an event on some processes.

    Args:
        processes: How many.
        on_gpu: Whether each has a CUDA device.
        num_grads: Gradients m, over all processes.

    Returns:
        A row, with the masks of each process.
    """
    with tempfile.TemporaryDirectory() as folder:
        shared = (processes, on_gpu, num_grads, folder)
        torch.multiprocessing.spawn(work, shared, nprocs=processes)
        ranks = [
            torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True)
            for rank in range(processes)
        ]
    parts = ranks[0]["seconds"]
    slowest = {name: max(one["seconds"][name] for one in ranks) for name in parts}
    return {
        "processes": processes,
        **{f"{name}_s": seconds for name, seconds in slowest.items()},
        "turns": ranks[0]["turns"],
        "planned_fisher_bytes": ranks[0]["planned_fisher_bytes"],
        "peak_memory_bytes": [one["peak_memory_bytes"] for one in ranks],
        "masks": [one["masks"].numpy() for one in ranks],
    }


def compare(rows: list[dict[str, Any]]) -> None:
    """Put the number of weights that differ from the first row in place of masks.

    Args:
        rows: The rows, changed in place.
    """
    first = rows[0]["masks"][0]
    for row in rows:
        wrong = [int(np.unpackbits(first ^ mask).sum()) for mask in row.pop("masks")]
        row["mask_bits_that_differ"] = max(wrong)
        row["masks_equal"] = max(wrong) == 0


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", help="1 and others")
    arguments = parser.parse_args()
    devices = torch.cuda.device_count()
    on_gpu = devices > 1
    counts = [n for n in MOST_PROCESSES if n <= devices] if on_gpu else CPU_PROCESSES
    counts = sorted(arguments.processes or counts)
    num_grads = QUICK_GRADS if arguments.quick else NUM_GRADS
    encoder.dense_model()  # made here where it is missing, not by every process
    where = "a CUDA device" if on_gpu else "one CPU thread"
    print(f"{num_grads} gradients, {SPARSITY:.0%} sparsity, {where} for each process")
    rows = [measure(count, on_gpu, num_grads) for count in counts]
    compare(rows)
    for row in rows:
        peak = max(row["peak_memory_bytes"])
        print(
            f"{row['processes']} processes: gradients and Fisher "
            f"{row['gradients_and_fisher_s']:.1f} s, selection "
            f"{row['selection_s']:.1f} s, update {row['update_s']:.1f} s, total "
            f"{row['total_s']:.1f} s; planned Fisher "
            f"{row['planned_fisher_bytes'] / 2**30:.2f} GiB, peak memory "
            f"{peak / 2**30:.2f} GiB per process; masks "
            f"{'equal' if row['masks_equal'] else 'NOT equal'} to those of "
            f"{counts[0]}"
        )
    result = {
        "benchmark": "scaling",
        "ratio": rows[0]["total_s"] / rows[-1]["total_s"],
        "num_grads": num_grads,
        "sparsity": SPARSITY,
        "device": "cuda" if on_gpu else "cpu",
        "rows": rows,
        **common.environment(),
        "torch_threads": 1,
    }
    print(f"ratio {result['ratio']:.2f}")
    common.write(arguments.json, result)


if __name__ == "__main__":
    main()
