"""Gradient samples from a trainer's data, in an order of their own."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class ShuffledShare(Sampler[int]):
    """The samples of one process: every pass is another order, shared by all."""

    def __init__(self, count: int, seed: int, rank: int, ranks: int) -> None:
        """Start with the order of a seed.

        Args:
            count: Samples of the data set.
            seed: Equal on all processes.
            rank: Number of this process.
            ranks: How many there are.
        """
        self._count, self._rank, self._ranks = count, rank, ranks
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        """Go through this process's samples once.

        Yields:
            Indices.
        """
        order = torch.randperm(self._count, generator=self._generator)
        yield from order[self._rank :: self._ranks].tolist()

    def __len__(self) -> int:
        """Return how many samples a pass of this process has."""
        return len(range(self._rank, self._count, self._ranks))


def sample_loader(
    trainer: Any, dataset: Dataset, options: dict[str, Any]
) -> DataLoader:
    """Make a loader of gradient samples for a trainer.

    Args:
        trainer: A Hugging Face `Trainer`.
        dataset: Its training samples, without the columns that the model does not take.
        options: What a recipe's ``grad_sampler_kwargs`` says, for torch's DataLoader.

    Returns:
        A plain loader, in the trainer's batch size unless the options say otherwise.

    Raises:
        ValueError: If the loader has no such option.
    """
    args = trainer.args
    known = inspect.signature(DataLoader.__init__).parameters
    unknown = sorted(set(options) - set(known) - {"self"})
    if unknown:
        raise ValueError(
            f"grad_sampler_kwargs={unknown[0]} is no option of a loader; expected one "
            f"of {', '.join(name for name in known if name not in ('self', 'dataset'))}"
            "; correct it"
        )
    given = {
        "batch_size": args.per_device_train_batch_size,
        "collate_fn": trainer.data_collator,
        "num_workers": args.dataloader_num_workers,
        "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
        # Its own, so that the order of training stays as it was.
        "generator": torch.Generator().manual_seed(args.seed),
        **options,
    }
    if not {"sampler", "shuffle", "batch_sampler"} & set(given):
        # Another order at each event, and the same one after a resume.
        seed = args.seed + trainer.state.global_step
        rank, ranks = args.process_index, args.world_size
        given["sampler"] = ShuffledShare(len(dataset), seed, rank, ranks)
    return DataLoader(dataset, **given)
