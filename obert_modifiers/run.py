"""``python -m obert_modifiers.run SCRIPT ...``: the same as ``obert run``.

For launchers that start a module: ``torchrun -m obert_modifiers.run ...``.
"""

import sys

from obert_modifiers.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
