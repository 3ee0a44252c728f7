"""Fine-tune the embedded encoder that the benchmarks prune, once.

python benchmarks/prepare.py
"""

import _common as common
import _encoder as encoder


def main() -> None:
    """Make the model where it is missing, and tell how good it is."""
    figures = encoder.validation(encoder.dense_model(), encoder.task_data())
    print(f"{common.DENSE.relative_to(common.ROOT)}: {figures}")


if __name__ == "__main__":
    main()
