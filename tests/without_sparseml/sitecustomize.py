"""Makes a process in which SparseML cannot be imported, as if it were not installed.

Python runs this where the folder is in PYTHONPATH; see tests/hosts.py.
"""

import sys


class _Missing:
    """Finds SparseML first, to say that it is not there."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        top = name.partition(".")[0]
        if top in ("sparseml", "sparsezoo"):
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)


sys.meta_path.insert(0, _Missing)
