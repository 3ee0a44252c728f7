"""Values that the modifiers refuse: the key, and the rule that it breaks."""

from obert_modifiers.faults import Rule
from tests.modifiers.table import SCHEDULE

PRUNERS = "OBERTPruningModifier", "GMPStarPruningModifier"
OBERT = PRUNERS[:1]
NM, DROP, QAT = ("NMPruningModifier",), ("LayerDropModifier",), ("QATModifier",)
LOGITS, MASKS = ("LogitDistillationModifier",), ("ConstantMasksModifier",)
AVERAGE = ("WeightAveragingModifier",)
FROZEN, STOP = ("FrozenParamsModifier",), ("EarlyStoppingModifier",)
# What has to be given beside the broken value.
SOUND = {
    **dict.fromkeys(PRUNERS, SCHEDULE),
    "NMPruningModifier": {"start_epoch": 0.0},
    "FrozenParamsModifier": {"params": "a"},
    "WeightAveragingModifier": {"start_epoch": 1.0},
    "EarlyStoppingModifier": {"metric": "f1"},
}
# The broken key comes last.
_ROWS = [
    (PRUNERS, {"final_sparsity": 80}, Rule.FRACTION),
    (PRUNERS, {"init_sparsity": -0.1}, Rule.FRACTION),
    (PRUNERS, {"final_sparsity": "most"}, Rule.FRACTION),
    (PRUNERS, {"params": [], "final_sparsity": {1.5: ["a"]}}, Rule.FRACTION),
    (PRUNERS, {"end_epoch": 0.5, "start_epoch": 1.0}, Rule.EPOCHS),
    (PRUNERS, {"inter_func": "cubik"}, Rule.CHOICE),
    (PRUNERS, {"mask_type": "unstructred"}, Rule.MASK_TYPE),
    (PRUNERS, {"global_sparsity": "yes"}, Rule.FLAG),
    (PRUNERS, {"update_frequency": 0}, Rule.FREQUENCY),
    (PRUNERS, {"params": [3]}, Rule.NAMES),
    (PRUNERS, {"final_sparsity": {0.5: ["a"]}, "params": ["b"]}, Rule.BOTH),
    (PRUNERS, {"params": "re:("}, Rule.PATTERN),
    (PRUNERS, {"end_epoch": -1}, Rule.EPOCHS),
    (PRUNERS, {"init_sparsity": 0.8}, Rule.SPARSITIES),
    (PRUNERS, {"min_density": 0.3}, Rule.SPARSITIES),
    (OBERT, {"num_grads": 0}, Rule.COUNT),
    (OBERT, {"fisher_block_size": 2.5}, Rule.COUNT),
    (OBERT, {"damp": 0.0}, Rule.POSITIVE),
    (OBERT, {"damp_fraction": 0.1, "damp": 1e-07}, Rule.BOTH),
    (OBERT, {"selection": "gready"}, Rule.CHOICE),
    (OBERT, {"update": "none"}, Rule.CHOICE),
    (OBERT, {"first_order": True, "update": "row"}, Rule.BOTH),
    (OBERT, {"grad_granularity": "token"}, Rule.CHOICE),
    (OBERT, {"grad_sampler_kwargs": 8}, Rule.MAPPING),
    (OBERT, {"memory_budget": "8XB"}, Rule.BYTES),
    (NM, {"mask_type": "block4"}, Rule.MASK_TYPE),
    (NM, {"mask_type": "4:4"}, Rule.MASK_TYPE),
    (NM, {"score": "fisher"}, Rule.CHOICE),
    (NM, {"gradual": "by_m"}, Rule.CHOICE),
    (NM, {"end_epoch": 2.0}, Rule.EPOCHS),
    (NM, {"gradual": "by_n"}, Rule.EPOCHS),
    (NM, {"end_epoch": 1.0, "gradual": "by_fraction"}, Rule.NEEDS),
    (NM, {"end_epoch": -1, "gradual": "by_n"}, Rule.EPOCHS),
    (
        NM,
        {"end_epoch": -1, "update_frequency": 0.5, "gradual": "by_fraction"},
        Rule.EPOCHS,
    ),
    (NM, {"start_epoch": -1, "end_epoch": 0, "gradual": "by_n"}, Rule.EPOCHS),
    (NM, {"num_grads": 64}, Rule.NEEDS),
    (NM, {"score": "obs", "fisher_block_size": 50}, Rule.BLOCK_SIZE),
    (NM, {"score": "obs", "damp_fraction": 0.1, "damp": 1e-07}, Rule.BOTH),
    (NM, {"score": "obs", "memory_budget": "much"}, Rule.BYTES),
    (NM, {"score": "obs", "first_order": 1}, Rule.FLAG),
    (NM, {"fisher_dtype": "float32"}, Rule.NEEDS),
    (DROP, {"keep": 1}, Rule.LAYERS),
    (DROP, {"keep": 2.5}, Rule.COUNT),
    (DROP, {"keep": [6, 0, 11]}, Rule.LAYERS),
    (DROP, {"keep": [0, -1]}, Rule.LAYERS),
    (DROP, {"keep": 6, "choice": "interleave"}, Rule.CHOICE),
    (DROP, {"keep": 6, "choice": "first_middle_last"}, Rule.LAYERS),
    (DROP, {"keep": [0, 1], "choice": "interleaved"}, Rule.BOTH),
    (LOGITS, {"hidden_weight": -1.0}, Rule.NOT_NEGATIVE),
    (LOGITS, {"layer_map": "uniform"}, Rule.NEEDS),
    (LOGITS, {"hidden_weight": 1.0, "layer_map": "evenly"}, Rule.CHOICE),
    (LOGITS, {"hidden_weight": 1.0, "layer_map": [0, -1]}, Rule.LAYERS),
    (LOGITS, {"teacher": 3}, Rule.NAMES),
    (LOGITS, {"mask_padding": "no"}, Rule.FLAG),
    (LOGITS, {"mask_unlabelled": "no"}, Rule.FLAG),
    (LOGITS, {"hardness": 2}, Rule.FRACTION),
    (LOGITS, {"temperature": 0}, Rule.POSITIVE),
    (LOGITS, {"hidden_weight": 1.0, "layer_map": 3}, Rule.LAYERS),
    (LOGITS, {"teacher_input_keys": 3}, Rule.NAMES),
    (QAT, {"freeze": "weights"}, Rule.CHOICE),
    (QAT, {"per_channel": "yes"}, Rule.FLAG),
    (QAT, {"quantize_embeddings": 1}, Rule.FLAG),
    (QAT, {"quantize_attention_matmuls": "false"}, Rule.FLAG),
    (QAT, {"start_epoch": "soon"}, Rule.NUMBER),
    (QAT, {"start_epoch": 2, "end_epoch": 2}, Rule.EPOCHS),
    (QAT, {"start_epoch": 2, "disable_observer_epoch": 1}, Rule.EPOCHS),
    (QAT, {"start_epoch": -1, "disable_observer_epoch": 0}, Rule.EPOCHS),
    (QAT, {"end_epoch": 4, "disable_observer_epoch": 5}, Rule.EPOCHS),
    (QAT, {"disable_observer_epoch": "half"}, Rule.NUMBER),
    (QAT, {"ignore": ["head", 3]}, Rule.NAMES),
    (QAT, {"ignore": 3}, Rule.NAMES),
    (MASKS, {"end_epoch": 1.0, "start_epoch": 2.0}, Rule.EPOCHS),
    (MASKS, {"start_epoch": -0.5}, Rule.NOT_NEGATIVE),
    (PRUNERS, {"start_epoch": -0.5}, Rule.NOT_NEGATIVE),
    (LOGITS, {"end_epoch": -0.5}, Rule.NOT_NEGATIVE),
    (FROZEN, {"params": 3}, Rule.NAMES),
    (FROZEN, {"params": []}, Rule.NAMES),
    (FROZEN, {"params": None}, Rule.NAMES),
    (PRUNERS, {"params": False}, Rule.NAMES),
    (FROZEN, {"end_epoch": 1, "start_epoch": 2}, Rule.EPOCHS),
    (AVERAGE, {"decay": 1.0}, Rule.FRACTION),
    (AVERAGE, {"decay": "most"}, Rule.NUMBER),
    (STOP, {"metric": " "}, Rule.NAMES),
    (STOP, {"metric": "eval_loss"}, Rule.NEEDS),
    (STOP, {"min_delta": -0.5}, Rule.NOT_NEGATIVE),
    (STOP, {"patience": 0}, Rule.COUNT),
    (STOP, {"mode": "most"}, Rule.CHOICE),
    (STOP, {"restore_best": "yes"}, Rule.FLAG),
]
BROKEN = [
    (name, keys, [*keys][-1], rule) for names, keys, rule in _ROWS for name in names
]
assert len(BROKEN) == 105

# The sentences, one of each form.
SAID = [
    (
        {"final_sparsity": 80},
        "final_sparsity=80 is outside [0, 1]; expected a fraction; write 0.8, not 80",
    ),
    (
        {"inter_func": "cubik"},
        "inter_func=cubik is unknown; expected one of linear, cubic, inverse_cubic; "
        "use cubic",
    ),
    (
        {"damp": 1e-07, "damp_fraction": 0.1},
        "damp=1e-07 and damp_fraction=0.1 are both given; expected one of them; "
        "leave damp out",
    ),
    (
        {"mask_type": "block4", "fisher_block_size": 50},
        "fisher_block_size=50 is not a multiple of group_size=4 (mask_type: block4); "
        "use 48",
    ),
    (
        {"num_grads": 0, "memory_budget": "much"},
        "num_grads=0 is no count; expected a whole number of 1 or more; write one\n"
        "memory_budget=much is not an amount of memory; expected bytes, or a number "
        "with a unit; write 8GB or 8GiB",
    ),
]
