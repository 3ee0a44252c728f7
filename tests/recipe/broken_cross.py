"""Recipes of modifiers that conflict, marked as in :mod:`tests.recipe.broken`."""

from tests.recipe.samples import group


def one(name: str, **keys: object) -> str:
    """Return a modifier: the tag, marked or not, then a key a line."""
    lines = "".join(f"      {key}: {value}\n" for key, value in keys.items())
    return f"  - !{name}\n{lines}"


def epochs(end: float) -> str:
    """Return the modifier that sets the epochs."""
    return one("EpochRangeModifier", start_epoch=0.0, end_epoch=end)


def span(start: object, end: object) -> dict[str, object]:
    return {"start_epoch": start, "end_epoch": end}


def gmp(start: object, end: object, **keys: object) -> str:
    """Return a pruning modifier."""
    name = "GMPStarPruningModifier"
    return one(name, final_sparsity=0.9, **span(start, end), **keys)


def obert(start: object, end: object, mark: str = "", **keys: object) -> str:
    """Return a second-order modifier."""
    schedule = {"init_sparsity": 0.5, "final_sparsity": 0.9, "update_frequency": 1.0}
    return one(f"OBERTPruningModifier{mark}", **schedule, **span(start, end), **keys)


def qat(start: object, **keys: object) -> str:
    """Return a quantizing modifier."""
    return one("QATModifier", start_epoch=start, **keys)


def cyclic(end: object, cycle: object) -> str:
    """Return a learning rate of recurring cycles."""
    keys = {"lr_func": "cyclic_linear", "cycle_epochs": cycle, "init_lr": 0.1}
    keys |= {"final_lr": 0.0, "start_epoch": 0.0, "end_epoch": end}
    return one("LearningRateFunctionModifier", **keys)


def staged(**stages: str) -> str:
    """Return a recipe of stages."""
    return "".join(f"{n}:\n  {n}_modifiers:\n{text}" for n, text in stages.items())


DROP = one("LayerDropModifier", keep=3)
LATE_DROP = one("LayerDropModifier", keep="3  #! CONFLICT")
LATE_QAT = one("QATModifier  #! CONFLICT", start_epoch=2)
LOGITS = "LogitDistillationModifier"
EVERYTHING = "__ALL_PRUNABLE__"

CROSS = {
    "two pruning modifiers with one token": group(
        gmp(0, 4), obert(2, 6, "  #! params CONFLICT")
    ),
    "two pruning modifiers, a name and a pattern": group(
        gmp(0, 4, params="['a.weight', 're:b']"),
        gmp(0, 3, params=r"['re:.*\.weight']  #! CONFLICT"),
    ),
    "two pruning modifiers, one of SparseML's with a mapping": group(
        gmp(1, 4, params=EVERYTHING),
        one(
            "MagnitudePruningModifier",
            init_sparsity=0.0,
            final_sparsity="{0.5: ['__ALL_PRUNABLE__'], 0.7: [c]}  #! CONFLICT",
            params="[]",
            **span(1.0, 2.0),
            update_frequency=0.5,
        ),
    ),
    "two quantizing modifiers": group(qat(1), LATE_QAT),
    "two quantizing modifiers, ours and SparseML's": group(
        one("QuantizationModifier", start_epoch=1.0), LATE_QAT
    ),
    "layers dropped twice": group(one("LayerDropModifier", keep=6), LATE_DROP),
    "layers dropped after pruning": staged(one=gmp(0, 4), two=LATE_DROP),
    "layers dropped after quantization": staged(one=qat(0), two=LATE_DROP),
    "pruned after the observers froze": group(
        gmp(2, "6  #! CONFLICT"), qat(4, disable_observer_epoch=5)
    ),
    "pruned after quantization ended, in another stage": staged(
        one=qat(4, end_epoch=5), two=gmp(5, "7  #! CONFLICT")
    ),
    "N:M after quantization": group(
        qat(0, disable_observer_epoch=2),
        one("NMPruningModifier  #! end_epoch CONFLICT", start_epoch=3.0),
    ),
    "the last pruning event where the recipe ends": group(
        epochs(6), gmp(2, "6  #! RECIPE_END")
    ),
    "pruning that outlasts the recipe": group(gmp(2, "7  #! RECIPE_END"), epochs(6)),
    "the end before the last cycle of the learning rate": group(
        epochs(6), cyclic("8.0  #! RECIPE_END", 2)
    ),
    "distillation that outlasts all stages": staged(
        one=epochs(4) + one(LOGITS, end_epoch="7.0  #! RECIPE_END"),
        two=epochs(6) + qat(4),
    ),
    "quantization that never begins": group(epochs(6), qat("6  #! RECIPE_END")),
    "masks that are let go of": group(
        epochs(8), gmp(2, 6, leave_enabled="False  #! CONFLICT")
    ),
    "masks that are let go of before quantization": group(
        gmp(2, 4, leave_enabled="False  #! CONFLICT"), qat(4)
    ),
    "two teachers": group(
        one(LOGITS, teacher="a"),
        one(LOGITS, teacher="b  #! CONFLICT", start_epoch=2.0),
    ),
    "the Fisher of a distillation that is not there": group(
        obert(0, 4, fisher_loss="train  #! NEEDS")
    ),
    "the Fisher of a distillation that is over": group(
        obert(0, 4, fisher_loss="distillation  #! NEEDS"), one(LOGITS, **span(0.0, 4.0))
    ),
    "faults of one modifier and between two come together": group(
        epochs(6),
        gmp(2, "6  #! RECIPE_END"),
        qat(4, freze="all  #! UNKNOWN"),
        obert(0, 3, "  #! params CONFLICT"),
    ),
}
assert len(CROSS) == 22

# Recipes that come near to one of the above and are right.
SOUND = {
    "one begins where the other ends": group(gmp(0, 4), obert(4, 6)),
    "other parameters": group(gmp(0, 4, params="[a]"), gmp(0, 4, params="[b]")),
    "patterns of which only the model knows": group(
        gmp(0, 4, params="['re:a']"), gmp(0, 4, params="['re:b']")
    ),
    "fixed masks beside pruning": group(
        gmp(0, 4), one("ConstantPruningModifier", params=EVERYTHING)
    ),
    "quantized when pruning is over": group(epochs(8), gmp(0, 4), qat(4)),
    "the last event before the end": group(epochs(6), gmp(2, 5.5), qat(5.5)),
    "a stage that ends before the recipe does": staged(
        one=epochs(4) + gmp(0, 4), two=epochs(6) + qat(4)
    ),
    "distillation through all stages": staged(
        one=epochs(4) + one(LOGITS, end_epoch=6.0), two=epochs(6) + qat(4)
    ),
    "a second stage without epochs": staged(one=epochs(4), two=gmp(4, 6)),
    "masks that others take over": group(
        epochs(8),
        gmp(2, 4, leave_enabled=False),
        one("ConstantPruningModifier", params=EVERYTHING, start_epoch=4.0),
    ),
    "masks until the end": group(epochs(5), gmp(2, 4.5, leave_enabled=True)),
    "one teacher named twice": group(
        one(LOGITS, teacher="a", end_epoch=1.0),
        one(LOGITS, teacher="a", start_epoch=1.0),
    ),
    "a Fisher that is distilled": group(
        obert(1, 4, fisher_loss="distillation"), one(LOGITS, end_epoch=4.5)
    ),
    "layers dropped first": staged(one=DROP + gmp(0, 4), two=qat(4)),
    "one shot": group(gmp(0, 0), qat(0)),
}
assert len(SOUND) == 15

# Legal, and may not be meant.
NOTED = {
    "no teacher": group(one(f"{LOGITS}  #! NOTE", hardness=1.0)),
    "a cycle that is cut off": group(cyclic(5.0, "2  #! NOTE")),
    "ranges that training does not see fixed": group(
        epochs(6), qat(4, disable_observer_epoch="6  #! NOTE")
    ),
    "pruned while quantized": group(
        gmp(2, "6  #! NOTE"), qat(4, disable_observer_epoch=6)
    ),
    "layers dropped in a later stage": staged(
        dense=epochs(2), small=one("LayerDropModifier", keep="3  #! NOTE")
    ),
}
assert len(NOTED) == 5
