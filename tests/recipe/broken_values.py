"""Broken recipes: values, one modifier at a time."""

from tests.recipe.broken import Broken
from tests.recipe.samples import EPOCHS, GMP, OBERT, group

VALUES = [
    Broken(
        "a schedule that falls",
        group(OBERT.replace("init_sparsity: 0.0", "init_sparsity: 0.9")),
        ("3 OBERTPruningModifier.init_sparsity SPARSITIES",),
    ),
    Broken(
        "a number in place of parameters",
        group(OBERT, "      params: 3\n"),
        ("8 OBERTPruningModifier.params NAMES",),
    ),
    Broken(
        "a mapping without sparsities",
        group(OBERT.replace("0.8", "{}"), "      params: []\n"),
        ("4 OBERTPruningModifier.final_sparsity MAPPING",),
    ),
    Broken(
        "a sparsity without names",
        group(OBERT.replace("0.8", "{0.8: }"), "      params: []\n"),
        ("4 OBERTPruningModifier.final_sparsity NAMES",),
    ),
    Broken(
        "a batch that is no number of samples",
        group(OBERT, "      grad_sampler_kwargs: {batch_size: -1}\n"),
        ("8 OBERTPruningModifier.grad_sampler_kwargs COUNT",),
    ),
    Broken(
        "cycles without length",
        group(
            "  - !LearningRateFunctionModifier\n",
            "      {lr_func: cyclic_linear, cycle_epochs: 0, init_lr: 0.1,\n",
            "       final_lr: 0.0, start_epoch: 0.0, end_epoch: 1.0}\n",
        ),
        ("3 LearningRateFunctionModifier.cycle_epochs POSITIVE",),
    ),
    Broken(
        "distillation without time",
        group(
            "  - !LogitDistillationModifier\n      start_epoch: 1\n      end_epoch: 1\n"
        ),
        ("4 LogitDistillationModifier.end_epoch EPOCHS",),
    ),
    Broken(
        "unknown modifier",
        group(GMP.replace("GMPruning", "GMPrunning")),
        ("2 GMPrunningModifier UNKNOWN",),
    ),
    Broken(
        "unknown modifier unlike any",
        group(EPOCHS, "  - !Qqq\n      a: 1\n"),
        ("5 Qqq UNKNOWN",),
    ),
    Broken(
        "unknown key",
        group(EPOCHS, "      end_epochs: 4\n"),
        ("5 EpochRangeModifier.end_epochs UNKNOWN",),
    ),
    Broken(
        "unknown key of ours",
        group(
            "  - !LogitDistillationModifier\n      hardnes: 0.5\n      qqq: 1\n",
        ),
        (
            "3 LogitDistillationModifier.hardnes UNKNOWN",
            "4 LogitDistillationModifier.qqq UNKNOWN",
        ),
    ),
    Broken(
        "missing keys",
        group("  - !EpochRangeModifier\n"),
        (
            "2 EpochRangeModifier.end_epoch MISSING",
            "2 EpochRangeModifier.start_epoch MISSING",
        ),
    ),
    Broken(
        "percent",
        group(OBERT.replace("0.8", "80")),
        ("4 OBERTPruningModifier.final_sparsity FRACTION",),
    ),
    Broken(
        "percent sign, with SparseML's modifier",
        group(GMP.replace("0.8", "87.5%")),
        ("4 GMPruningModifier.final_sparsity FRACTION",),
    ),
    Broken(
        "percent as a key",
        group(
            GMP.replace("0.8", "{0.5: [a], 90: [b]}").replace("__ALL_PRUNABLE__", "[]")
        ),
        ("4 GMPruningModifier.final_sparsity FRACTION",),
    ),
    Broken(
        "negative sparsity",
        group(GMP.replace("init_sparsity: 0.0", "init_sparsity: -0.1")),
        ("3 GMPruningModifier.init_sparsity FRACTION",),
    ),
    Broken(
        "sparsity above any percentage",
        group(GMP.replace("0.8", "800")),
        ("4 GMPruningModifier.final_sparsity FRACTION",),
    ),
    Broken(
        "sparsity that is no number",
        group(GMP.replace("0.8", "high")),
        ("4 GMPruningModifier.final_sparsity FRACTION",),
    ),
    Broken(
        "start after end",
        group(EPOCHS.replace("start_epoch: 0", "start_epoch: 4")),
        ("3 EpochRangeModifier.start_epoch EPOCHS",),
    ),
    Broken(
        "epoch that is no number",
        group(EPOCHS.replace("end_epoch: 3", "end_epoch: last")),
        ("4 EpochRangeModifier.end_epoch NUMBER",),
    ),
    Broken(
        "epoch that is not a number at all",
        group(EPOCHS.replace("end_epoch: 3", "end_epoch: .nan")),
        ("4 EpochRangeModifier.end_epoch NUMBER",),
    ),
    Broken(
        "unknown inter_func",
        group(OBERT, "      inter_func: cubik\n"),
        ("8 OBERTPruningModifier.inter_func CHOICE",),
    ),
    Broken(
        "unknown mask_type",
        group(GMP, "      mask_type: blok4\n"),
        ("9 GMPruningModifier.mask_type MASK_TYPE",),
    ),
    Broken(
        "N:M without quotes, which YAML reads in base 60",
        group(GMP, "      mask_type: 2:4\n"),
        ("9 GMPruningModifier.mask_type MASK_TYPE",),
    ),
    Broken(
        "mask_type of ours",
        group(OBERT, "      mask_type: tensorrt\n"),
        ("8 OBERTPruningModifier.mask_type MASK_TYPE",),
    ),
    Broken(
        "groups that straddle Fisher blocks",
        group(OBERT, "      mask_type: block4\n      fisher_block_size: 50\n"),
        ("9 OBERTPruningModifier.fisher_block_size BLOCK_SIZE",),
    ),
    Broken(
        "sparsity that is not the one of N:M",
        group(OBERT, "      mask_type: 2:4\n"),
        ("4 OBERTPruningModifier.final_sparsity SPARSITIES",),
    ),
    Broken(
        "bad regular expression",
        group(OBERT, "      params: ['re:a(']\n"),
        ("8 OBERTPruningModifier.params PATTERN",),
    ),
    Broken(
        "what our constructors refuse, all of it",
        group(OBERT, "      num_grads: 0\n      fisher_block_size: 4.5\n"),
        (
            "8 OBERTPruningModifier.num_grads COUNT",
            "9 OBERTPruningModifier.fisher_block_size COUNT",
        ),
    ),
    Broken(
        "what SparseML's constructors refuse",
        group(GMP.replace("__ALL_PRUNABLE__", "encoder")),
        ("8 GMPruningModifier.params REFUSED",),
    ),
    Broken(
        "a scalar where a list belongs",
        group("  - !LayerPruningModifier\n      layers: 3\n"),
        ("3 LayerPruningModifier.layers REFUSED",),
    ),
]
