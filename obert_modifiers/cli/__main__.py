"""The command as a module, for ``accelerate launch -m`` and ``torchrun -m``."""

import sys

from obert_modifiers.cli import main

if __name__ == "__main__":
    sys.exit(main())
