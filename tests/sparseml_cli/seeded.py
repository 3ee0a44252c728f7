"""`python -m tests.sparseml_cli.seeded ...`: obert, with a seed before evaluations.

SparseML masks the tokens of an evaluation from wherever the generator is, so that the
same model is measured otherwise after training than in a new process.
"""

import sys

import transformers

from obert_modifiers.cli import main

original = transformers.Trainer.evaluate


def evaluate(self, *args, **kwargs):
    transformers.set_seed(0)
    return original(self, *args, **kwargs)


if __name__ == "__main__":
    transformers.Trainer.evaluate = evaluate
    sys.exit(main(sys.argv[1:]))
