"""Fine-tune the embedded encoder that the benchmarks prune, once for each data set.

    python benchmarks/prepare.py [--datasets movie_snippets sst2] [--data FOLDER]

A data set whose files are missing is skipped.
"""

import argparse
from pathlib import Path

import _common as common
import _encoder as encoder


def main() -> None:
    """Make the models where they are missing, and tell how good they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--datasets", nargs="+", choices=encoder.DATASETS, default=encoder.DATASETS
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    arguments = parser.parse_args()
    for name in arguments.datasets:
        dataset = encoder.find(name, arguments.data)
        if dataset is not None:
            model = encoder.dense_model(dataset)
            figures = encoder.validation(model, encoder.task_data(dataset))
            print(f"{dataset.dense.relative_to(common.ROOT)}: {figures}")


if __name__ == "__main__":
    main()
