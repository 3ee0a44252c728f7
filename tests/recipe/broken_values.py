"""Broken recipes: values, one modifier at a time."""

from tests.recipe.broken import Broken
from tests.recipe.samples import EPOCHS, GMP, OBERT, group

VALUES = [
    Broken(
        "a schedule that falls",
        group(OBERT.replace("init_sparsity: 0.0", "init_sparsity: 0.9")),
        (
            "3: OBERTPruningModifier.init_sparsity: init_sparsity=0.9 is above "
            "final_sparsity=0.8; expected a schedule that prunes more and more; lower "
            "it or raise final_sparsity",
        ),
    ),
    Broken(
        "a number in place of parameters",
        group(OBERT, "      params: 3\n"),
        (
            "8: OBERTPruningModifier.params: params=3 is not a name; expected names or "
            "re: patterns; write a list of strings",
        ),
    ),
    Broken(
        "a mapping without sparsities",
        group(OBERT.replace("0.8", "{}"), "      params: []\n"),
        (
            "4: OBERTPruningModifier.final_sparsity: final_sparsity={} names no "
            "parameters; expected a sparsity, or a mapping from sparsities to lists of "
            "names; write one",
        ),
    ),
    Broken(
        "a sparsity without names",
        group(OBERT.replace("0.8", "{0.8: }"), "      params: []\n"),
        (
            "4: OBERTPruningModifier.final_sparsity: final_sparsity=None is not a "
            "name; expected names or re: patterns; write a list of strings",
        ),
    ),
    Broken(
        "a batch that is no number of samples",
        group(OBERT, "      grad_sampler_kwargs: {batch_size: -1}\n"),
        (
            "8: OBERTPruningModifier.grad_sampler_kwargs: grad_sampler_kwargs=-1 is "
            "not a positive whole number; expected 1 or more; write a count",
        ),
    ),
    Broken(
        "cycles without length",
        group(
            "  - !LearningRateFunctionModifier\n",
            "      {lr_func: cyclic_linear, cycle_epochs: 0, init_lr: 0.1,\n",
            "       final_lr: 0.0, start_epoch: 0.0, end_epoch: 1.0}\n",
        ),
        (
            "3: LearningRateFunctionModifier.cycle_epochs: cycle_epochs=0 is not "
            "positive; expected the epochs of a cycle; write a number above 0",
        ),
    ),
    Broken(
        "distillation without time",
        group(
            "  - !LogitDistillationModifier\n      start_epoch: 1\n      end_epoch: 1\n"
        ),
        (
            "4: LogitDistillationModifier.end_epoch: end_epoch=1 does not lie after "
            "start_epoch=1; expected epochs to distil in, or -1 for the end of the "
            "training; raise it",
        ),
    ),
    Broken(
        "unknown modifier",
        group(GMP.replace("GMPruning", "GMPrunning")),
        (
            "2: GMPrunningModifier: there is no modifier GMPrunningModifier; expected "
            "one of SparseML's or obert_modifiers' modifiers; write "
            "!GMPruningModifier",
        ),
    ),
    Broken(
        "unknown modifier unlike any",
        group(EPOCHS, "  - !Qqq\n      a: 1\n"),
        (
            "5: Qqq: there is no modifier Qqq; expected one of SparseML's or "
            "obert_modifiers' modifiers; remove it",
        ),
    ),
    Broken(
        "unknown key",
        group(EPOCHS, "      end_epochs: 4\n"),
        (
            "5: EpochRangeModifier.end_epochs: end_epochs is not a key of "
            "EpochRangeModifier; expected one of end_epoch, start_epoch; write "
            "end_epoch",
        ),
    ),
    Broken(
        "unknown key of ours",
        group(
            "  - !LogitDistillationModifier\n      hardnes: 0.5\n      qqq: 1\n",
        ),
        (
            "3: LogitDistillationModifier.hardnes: hardnes is not a key of "
            "LogitDistillationModifier; expected one of end_epoch, hardness, "
            "hidden_weight, layer_map, mask_padding, start_epoch, teacher, "
            "teacher_input_keys, temperature; write hardness",
            "4: LogitDistillationModifier.qqq: qqq is not a key of "
            "LogitDistillationModifier; expected one of end_epoch, hardness, "
            "hidden_weight, layer_map, mask_padding, start_epoch, teacher, "
            "teacher_input_keys, temperature; remove it",
        ),
    ),
    Broken(
        "missing keys",
        group("  - !EpochRangeModifier\n"),
        (
            "2: EpochRangeModifier.end_epoch: end_epoch is missing; expected a value, "
            "since it has no default; add 'end_epoch: ...' to the modifier on this "
            "line",
            "2: EpochRangeModifier.start_epoch: start_epoch is missing; expected a "
            "value, since it has no default; add 'start_epoch: ...' to the modifier "
            "on this line",
        ),
    ),
    Broken(
        "percent",
        group(OBERT.replace("0.8", "80")),
        (
            "4: OBERTPruningModifier.final_sparsity: final_sparsity=80 is outside "
            "[0, 1]; expected a fraction; write 0.8, not 80",
        ),
    ),
    Broken(
        "percent sign, with SparseML's modifier",
        group(GMP.replace("0.8", "87.5%")),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=87.5% is a "
            "percentage; expected a fraction; write 0.875, not 87.5%",
        ),
    ),
    Broken(
        "percent as a key",
        group(
            GMP.replace("0.8", "{0.5: [a], 90: [b]}").replace("__ALL_PRUNABLE__", "[]")
        ),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=90 is outside [0, 1]; "
            "expected a fraction; write 0.9, not 90",
        ),
    ),
    Broken(
        "negative sparsity",
        group(GMP.replace("init_sparsity: 0.0", "init_sparsity: -0.1")),
        (
            "3: GMPruningModifier.init_sparsity: init_sparsity=-0.1 is outside [0, 1]; "
            "expected a fraction; write a number from 0 to 1",
        ),
    ),
    Broken(
        "sparsity above any percentage",
        group(GMP.replace("0.8", "800")),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=800 is outside "
            "[0, 1]; expected a fraction; write a number from 0 to 1",
        ),
    ),
    Broken(
        "sparsity that is no number",
        group(GMP.replace("0.8", "high")),
        (
            "4: GMPruningModifier.final_sparsity: final_sparsity=high is not a "
            "number; expected a fraction; write one in [0, 1]",
        ),
    ),
    Broken(
        "start after end",
        group(EPOCHS.replace("start_epoch: 0", "start_epoch: 4")),
        (
            "3: EpochRangeModifier.start_epoch: start_epoch=4 comes after end_epoch=3; "
            "expected the start before the end; swap them or move one",
        ),
    ),
    Broken(
        "epoch that is no number",
        group(EPOCHS.replace("end_epoch: 3", "end_epoch: last")),
        (
            "4: EpochRangeModifier.end_epoch: end_epoch=last is not a number; expected "
            "an epoch; write one",
        ),
    ),
    Broken(
        "epoch that is not a number at all",
        group(EPOCHS.replace("end_epoch: 3", "end_epoch: .nan")),
        (
            "4: EpochRangeModifier.end_epoch: end_epoch=nan is not a number; expected "
            "an epoch; write one",
        ),
    ),
    Broken(
        "unknown inter_func",
        group(OBERT, "      inter_func: cubik\n"),
        (
            "8: OBERTPruningModifier.inter_func: inter_func=cubik is unknown; expected "
            "one of linear, cubic, inverse_cubic; write cubic",
        ),
    ),
    Broken(
        "unknown mask_type",
        group(GMP, "      mask_type: blok4\n"),
        (
            "9: GMPruningModifier.mask_type: mask_type=blok4 is unknown; expected one "
            "of unstructured, block4, tensorrt, filter, channel, N:M or a list of two "
            "numbers; write block4",
        ),
    ),
    Broken(
        "N:M without quotes, which YAML reads in base 60",
        group(GMP, "      mask_type: 2:4\n"),
        (
            "9: GMPruningModifier.mask_type: mask_type=124 is unknown; expected one "
            "of unstructured, block4, tensorrt, filter, channel, N:M or a list of two "
            "numbers; write '2:4' in quotes",
        ),
    ),
    Broken(
        "mask_type of ours",
        group(OBERT, "      mask_type: tensorrt\n"),
        (
            "8: OBERTPruningModifier.mask_type: mask_type=tensorrt is unknown; "
            "expected one of unstructured, block4, block:RxC, N:M; use unstructured",
        ),
    ),
    Broken(
        "groups that straddle Fisher blocks",
        group(OBERT, "      mask_type: block4\n      fisher_block_size: 50\n"),
        (
            "9: OBERTPruningModifier.fisher_block_size: fisher_block_size=50 is not a "
            "multiple of group_size=4 (mask_type: block4); use 48",
        ),
    ),
    Broken(
        "sparsity that is not the one of N:M",
        group(OBERT, "      mask_type: 2:4\n"),
        (
            "4: OBERTPruningModifier.final_sparsity: final_sparsity=0.8 is not the "
            "sparsity of mask_type=2:4; expected 0.5; write 0.5",
        ),
    ),
    Broken(
        "bad regular expression",
        group(OBERT, "      params: ['re:a(']\n"),
        (
            "8: OBERTPruningModifier.params: params=re:a( is not a regular expression "
            "(missing ), unterminated subpattern at position 1); expected one after "
            "re:; correct it",
        ),
    ),
    Broken(
        "what our constructors refuse, all of it",
        group(OBERT, "      num_grads: 0\n      fisher_block_size: 4.5\n"),
        (
            "8: OBERTPruningModifier.num_grads: num_grads=0 is not a positive whole "
            "number; expected 1 or more; write a count",
            "9: OBERTPruningModifier.fisher_block_size: fisher_block_size=4.5 is not a "
            "positive whole number; expected 1 or more; write a count",
        ),
    ),
    Broken(
        "what SparseML's constructors refuse",
        group(GMP.replace("__ALL_PRUNABLE__", "encoder")),
        (
            "8: GMPruningModifier.params: GMPruningModifier refuses its values "
            "(unsupported string (encoder) given in GMPruningModifier for params); "
            "expected values as in its documentation; correct them",
        ),
    ),
    Broken(
        "a scalar where a list belongs",
        group("  - !LayerPruningModifier\n      layers: 3\n"),
        (
            "3: LayerPruningModifier.layers: LayerPruningModifier refuses its values "
            "(unsupported type (3) given in LayerPruningModifier for layers); expected "
            "values as in its documentation; correct them",
        ),
    ),
]
