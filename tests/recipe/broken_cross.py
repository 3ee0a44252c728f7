"""Broken recipes: modifiers that go against each other."""

from tests.recipe.broken import Broken
from tests.recipe.samples import group


def one(name: str, **keys: object) -> str:
    """Return a modifier of three lines and more: the tag, then a key a line."""
    lines = "".join(f"      {key}: {value}\n" for key, value in keys.items())
    return f"  - !{name}\n{lines}"


def epochs(end: float) -> str:
    """Return the modifier that sets the epochs, of three lines."""
    return one("EpochRangeModifier", start_epoch=0.0, end_epoch=end)


def gmp(start: float, end: float, **keys: object) -> str:
    """Return a pruning modifier of four lines and more."""
    return one(
        "GMPStarPruningModifier",
        final_sparsity=0.9,
        start_epoch=start,
        end_epoch=end,
        **keys,
    )


def qat(start: float, **keys: object) -> str:
    """Return a quantizing modifier of two lines and more."""
    return one("QATModifier", start_epoch=start, **keys)


def obert(start: float, end: float, **keys: object) -> str:
    """Return a second-order modifier of six lines and more."""
    schedule = {"init_sparsity": 0.5, "final_sparsity": 0.9, "update_frequency": 1.0}
    return one(
        "OBERTPruningModifier", **schedule, start_epoch=start, end_epoch=end, **keys
    )


def staged(**stages: str) -> str:
    """Return a recipe of stages; a stage takes two lines more than its modifiers."""
    return "".join(f"{n}:\n  {n}_modifiers:\n{text}" for n, text in stages.items())


DROP = one("LayerDropModifier", keep=3)
LOGITS = "LogitDistillationModifier"

CROSS = [
    Broken(
        "two pruning modifiers with one token",
        group(gmp(0, 4), obert(2, 6)),
        ("6 OBERTPruningModifier.params CONFLICT",),
    ),
    Broken(
        "two pruning modifiers, a name and a pattern",
        group(
            gmp(0, 4, params="['a.weight', 're:b']"),
            gmp(0, 3, params=r"['re:.*\.weight']"),
        ),
        ("11 GMPStarPruningModifier.params CONFLICT",),
    ),
    Broken(
        "two pruning modifiers, one of SparseML's with a mapping",
        group(
            gmp(1, 4, params="__ALL_PRUNABLE__"),
            one(
                "MagnitudePruningModifier",
                init_sparsity=0.0,
                final_sparsity="{0.5: ['__ALL_PRUNABLE__'], 0.7: [c]}",
                params="[]",
                start_epoch=1.0,
                end_epoch=2.0,
                update_frequency=0.5,
            ),
        ),
        ("9 MagnitudePruningModifier.final_sparsity CONFLICT",),
    ),
    Broken(
        "two quantizing modifiers",
        group(qat(1), qat(2)),
        ("4 QATModifier CONFLICT",),
    ),
    Broken(
        "two quantizing modifiers, ours and SparseML's",
        group(one("QuantizationModifier", start_epoch=1.0), qat(2)),
        ("4 QATModifier CONFLICT",),
    ),
    Broken(
        "layers dropped twice",
        group(one("LayerDropModifier", keep=6), DROP),
        ("5 LayerDropModifier.keep CONFLICT",),
    ),
    Broken(
        "layers dropped after pruning",
        staged(one=gmp(0, 4), two=DROP),
        ("10 LayerDropModifier.keep CONFLICT",),
    ),
    Broken(
        "layers dropped after quantization",
        staged(one=qat(0), two=DROP),
        ("8 LayerDropModifier.keep CONFLICT",),
    ),
    Broken(
        "pruned after the observers froze",
        group(gmp(2, 6), qat(4, disable_observer_epoch=5)),
        ("5 GMPStarPruningModifier.end_epoch CONFLICT",),
    ),
    Broken(
        "pruned after quantization ended, in another stage",
        staged(one=qat(4, end_epoch=5), two=gmp(5, 7)),
        ("11 GMPStarPruningModifier.end_epoch CONFLICT",),
    ),
    Broken(
        "N:M after quantization",
        group(
            qat(0, disable_observer_epoch=2),
            one("NMPruningModifier", start_epoch=3.0),
        ),
        ("5 NMPruningModifier.end_epoch CONFLICT",),
    ),
    Broken(
        "the last pruning event where the recipe ends",
        group(epochs(6), gmp(2, 6)),
        ("8 GMPStarPruningModifier.end_epoch RECIPE_END",),
    ),
    Broken(
        "pruning that outlasts the recipe",
        group(gmp(2, 7), epochs(6)),
        ("5 GMPStarPruningModifier.end_epoch RECIPE_END",),
    ),
    Broken(
        "the end before the last cycle of the learning rate",
        group(
            epochs(6),
            one(
                "LearningRateFunctionModifier",
                lr_func="cyclic_linear",
                cycle_epochs=2,
                init_lr=0.1,
                final_lr=0.0,
                start_epoch=0.0,
                end_epoch=8.0,
            ),
        ),
        ("11 LearningRateFunctionModifier.end_epoch RECIPE_END",),
    ),
    Broken(
        "distillation that outlasts all stages",
        staged(one=epochs(4) + one(LOGITS, end_epoch=7.0), two=epochs(6) + qat(4)),
        ("7 LogitDistillationModifier.end_epoch RECIPE_END",),
    ),
    Broken(
        "quantization that never begins",
        group(epochs(6), qat(6)),
        ("6 QATModifier.start_epoch RECIPE_END",),
    ),
    Broken(
        "masks that are let go of",
        group(epochs(8), gmp(2, 6, leave_enabled=False)),
        ("9 GMPStarPruningModifier.leave_enabled CONFLICT",),
    ),
    Broken(
        "masks that are let go of before quantization",
        group(gmp(2, 4, leave_enabled=False), qat(4)),
        ("6 GMPStarPruningModifier.leave_enabled CONFLICT",),
    ),
    Broken(
        "two teachers",
        group(one(LOGITS, teacher="a"), one(LOGITS, teacher="b", start_epoch=2.0)),
        ("5 LogitDistillationModifier.teacher CONFLICT",),
    ),
    Broken(
        "the Fisher of a distillation that is not there",
        group(obert(0, 4, fisher_loss="train")),
        ("8 OBERTPruningModifier.fisher_loss NEEDS",),
    ),
    Broken(
        "the Fisher of a distillation that is over",
        group(
            obert(0, 4, fisher_loss="distillation"),
            one(LOGITS, start_epoch=0.0, end_epoch=4.0),
        ),
        ("8 OBERTPruningModifier.fisher_loss NEEDS",),
    ),
    Broken(
        "faults of one modifier and between two come together",
        group(epochs(6), gmp(2, 6), qat(4, freze="all"), obert(0, 3)),
        (
            "8 GMPStarPruningModifier.end_epoch RECIPE_END",
            "11 QATModifier.freze UNKNOWN",
            "12 OBERTPruningModifier.params CONFLICT",
        ),
    ),
]
assert len(CROSS) == 22

# Recipes that come near to one of the above and are right.
SOUND = {
    "one begins where the other ends": group(gmp(0, 4), obert(4, 6)),
    "other parameters": group(gmp(0, 4, params="[a]"), gmp(0, 4, params="[b]")),
    "patterns of which only the model knows": group(
        gmp(0, 4, params="['re:a']"), gmp(0, 4, params="['re:b']")
    ),
    "fixed masks beside pruning": group(
        gmp(0, 4), one("ConstantPruningModifier", params="__ALL_PRUNABLE__")
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
        one("ConstantPruningModifier", params="__ALL_PRUNABLE__", start_epoch=4.0),
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

DISTIL_NOTE = (
    "LogitDistillationModifier: names no teacher; it has to come from outside; pass "
    "it, as with --distill_teacher, or write teacher: self"
)
NOTED = {
    "no teacher": (group(one(LOGITS, hardness=1.0)), (f"2: {DISTIL_NOTE}",)),
    "a cycle that is cut off": (
        group(
            one(
                "LearningRateFunctionModifier",
                lr_func="cyclic_linear",
                cycle_epochs=2,
                init_lr=0.1,
                final_lr=0.0,
                start_epoch=0.0,
                end_epoch=5.0,
            ),
        ),
        (
            "4: LearningRateFunctionModifier.cycle_epochs: cycle_epochs=2 does not "
            "divide the 5 epochs of the modifier: the last cycle is cut off before "
            "final_lr",
        ),
    ),
    "ranges that training does not see fixed": (
        group(epochs(6), qat(4, disable_observer_epoch=6)),
        (
            "7: QATModifier.disable_observer_epoch: disable_observer_epoch=6 is not "
            "reached: the recipe ends at epoch 6; ranges are fixed there, without "
            "training after it",
        ),
    ),
    "pruned while quantized": (
        group(gmp(2, 6), qat(4, disable_observer_epoch=6)),
        (
            "5: GMPStarPruningModifier.end_epoch: end_epoch=6 prunes while QATModifier "
            "on line 6 quantizes, from epoch 4 on; the papers quantize last, with fixed"
            " masks",
        ),
    ),
    "layers dropped in a later stage": (
        staged(dense=epochs(2), small=DROP),
        (
            "9: LayerDropModifier.keep: drops layers before all training, that of the "
            "stages above it too; to train the whole model first, run that stage alone",
        ),
    ),
}
assert len(NOTED) == 5
