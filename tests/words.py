"""Sentences and recipes of the tests; needs no package, so that both stacks can."""

import random

GOOD = "fine great lovely warm bright funny".split()
BAD = "dull poor awful cold grim boring".split()
OTHER = "the film a plot of cast is and story with it scene".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

TWO_EPOCHS = """\
modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 2.0
  - !LearningRateFunctionModifier
      lr_func: linear
      init_lr: 5e-3
      final_lr: 0.0
      start_epoch: 0.0
      end_epoch: 2.0
"""
OBERT = """\
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
      num_grads: 16
      fisher_block_size: 16
"""


def sentences(count: int, seed: int = 0, other: list[str] = OTHER) -> list[dict]:
    """Make sentences whose label is which of the two word lists they draw from."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.randrange(2)
        words = draw.choices(other, k=draw.randrange(3, 12))
        words += draw.choices(GOOD if label else BAD, k=2)
        draw.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": label})
    return rows
