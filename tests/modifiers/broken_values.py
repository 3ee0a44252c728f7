"""Values that the modifiers refuse: the key, and the rule that it breaks."""

from obert_modifiers.faults import Rule
from tests.modifiers.table import SCHEDULE

PRUNERS = "OBERTPruningModifier", "GMPStarPruningModifier"
OBERT = PRUNERS[:1]
NM, DROP, QAT = ("NMPruningModifier",), ("LayerDropModifier",), ("QATModifier",)
LOGITS, MASKS = ("LogitDistillationModifier",), ("ConstantMasksModifier",)
FROZEN, STOP = ("FrozenParamsModifier",), ("EarlyStoppingModifier",)
# What has to be given beside the broken value.
SOUND = {
    **dict.fromkeys(PRUNERS, SCHEDULE),
    "NMPruningModifier": {"start_epoch": 0.0},
    "FrozenParamsModifier": {"params": "a"},
    "EarlyStoppingModifier": {"metric": "loss"},
}
_ROWS = [
    (PRUNERS, {"final_sparsity": 80}, "final_sparsity", Rule.FRACTION),
    (PRUNERS, {"init_sparsity": -0.1}, "init_sparsity", Rule.FRACTION),
    (PRUNERS, {"final_sparsity": "most"}, "final_sparsity", Rule.FRACTION),
    (
        PRUNERS,
        {"final_sparsity": {1.5: ["a"]}, "params": []},
        "final_sparsity",
        Rule.FRACTION,
    ),
    (PRUNERS, {"end_epoch": 0.5}, "start_epoch", Rule.EPOCHS),
    (PRUNERS, {"inter_func": "cubik"}, "inter_func", Rule.CHOICE),
    (PRUNERS, {"mask_type": "unstructred"}, "mask_type", Rule.MASK_TYPE),
    (PRUNERS, {"global_sparsity": "yes"}, "global_sparsity", Rule.FLAG),
    (PRUNERS, {"update_frequency": 0}, "update_frequency", Rule.FREQUENCY),
    (PRUNERS, {"params": [3]}, "params", Rule.NAMES),
    (PRUNERS, {"final_sparsity": {0.5: ["a"]}, "params": ["b"]}, "params", Rule.BOTH),
    (OBERT, {"num_grads": 0}, "num_grads", Rule.COUNT),
    (OBERT, {"fisher_block_size": 2.5}, "fisher_block_size", Rule.COUNT),
    (OBERT, {"damp": 0.0}, "damp", Rule.POSITIVE),
    (OBERT, {"damp": 1e-07, "damp_fraction": 0.1}, "damp", Rule.BOTH),
    (OBERT, {"selection": "gready"}, "selection", Rule.CHOICE),
    (OBERT, {"update": "none"}, "update", Rule.CHOICE),
    (OBERT, {"grad_granularity": "token"}, "grad_granularity", Rule.CHOICE),
    (OBERT, {"grad_sampler_kwargs": 8}, "grad_sampler_kwargs", Rule.MAPPING),
    (NM, {"mask_type": "block4"}, "mask_type", Rule.MASK_TYPE),
    (NM, {"mask_type": "4:4"}, "mask_type", Rule.MASK_TYPE),
    (NM, {"score": "fisher"}, "score", Rule.CHOICE),
    (NM, {"gradual": "by_m"}, "gradual", Rule.CHOICE),
    (NM, {"end_epoch": 2.0}, "end_epoch", Rule.EPOCHS),
    (NM, {"gradual": "by_n"}, "gradual", Rule.EPOCHS),
    (NM, {"gradual": "by_fraction", "end_epoch": 1.0}, "gradual", Rule.NEEDS),
    (NM, {"num_grads": 64}, "num_grads", Rule.NEEDS),
    (
        NM,
        {"score": "obs", "fisher_block_size": 50},
        "fisher_block_size",
        Rule.BLOCK_SIZE,
    ),
    (NM, {"score": "obs", "damp": 1e-07, "damp_fraction": 0.1}, "damp", Rule.BOTH),
    (NM, {"score": "obs", "memory_budget": "much"}, "memory_budget", Rule.BYTES),
    (DROP, {"keep": 1}, "keep", Rule.LAYERS),
    (DROP, {"keep": 2.5}, "keep", Rule.COUNT),
    (DROP, {"keep": [6, 0, 11]}, "keep", Rule.LAYERS),
    (DROP, {"keep": [0, -1]}, "keep", Rule.LAYERS),
    (DROP, {"keep": 6, "choice": "interleave"}, "choice", Rule.CHOICE),
    (DROP, {"keep": 6, "choice": "first_middle_last"}, "choice", Rule.LAYERS),
    (DROP, {"keep": [0, 1], "choice": "interleaved"}, "choice", Rule.BOTH),
    (LOGITS, {"hidden_weight": -1.0}, "hidden_weight", Rule.NOT_NEGATIVE),
    (LOGITS, {"layer_map": "uniform"}, "layer_map", Rule.NEEDS),
    (LOGITS, {"hidden_weight": 1.0, "layer_map": "evenly"}, "layer_map", Rule.CHOICE),
    (LOGITS, {"hidden_weight": 1.0, "layer_map": [0, -1]}, "layer_map", Rule.LAYERS),
    (LOGITS, {"teacher": 3}, "teacher", Rule.NAMES),
    (LOGITS, {"mask_padding": "no"}, "mask_padding", Rule.FLAG),
    (QAT, {"freeze": "weights"}, "freeze", Rule.CHOICE),
    (QAT, {"per_channel": "yes"}, "per_channel", Rule.FLAG),
    (QAT, {"quantize_embeddings": 1}, "quantize_embeddings", Rule.FLAG),
    (
        QAT,
        {"quantize_attention_matmuls": "false"},
        "quantize_attention_matmuls",
        Rule.FLAG,
    ),
    (QAT, {"start_epoch": "soon"}, "start_epoch", Rule.NUMBER),
    (QAT, {"start_epoch": 2, "end_epoch": 2}, "end_epoch", Rule.EPOCHS),
    (
        QAT,
        {"start_epoch": 2, "disable_observer_epoch": 1},
        "disable_observer_epoch",
        Rule.EPOCHS,
    ),
    (
        QAT,
        {"start_epoch": -1, "disable_observer_epoch": 0},
        "disable_observer_epoch",
        Rule.EPOCHS,
    ),
    (
        QAT,
        {"disable_observer_epoch": 5, "end_epoch": 4},
        "disable_observer_epoch",
        Rule.EPOCHS,
    ),
    (QAT, {"disable_observer_epoch": "half"}, "disable_observer_epoch", Rule.NUMBER),
    (QAT, {"ignore": ["head", 3]}, "ignore", Rule.NAMES),
    (QAT, {"ignore": 3}, "ignore", Rule.NAMES),
    (PRUNERS, {"params": "re:("}, "params", Rule.PATTERN),
    (PRUNERS, {"end_epoch": -1}, "end_epoch", Rule.EPOCHS),
    (PRUNERS, {"init_sparsity": 0.8}, "init_sparsity", Rule.SPARSITIES),
    (PRUNERS, {"min_density": 0.3}, "min_density", Rule.SPARSITIES),
    (OBERT, {"memory_budget": "8XB"}, "memory_budget", Rule.BYTES),
    (NM, {"score": "obs", "first_order": 1}, "first_order", Rule.FLAG),
    (NM, {"fisher_dtype": "float32"}, "fisher_dtype", Rule.NEEDS),
    (LOGITS, {"hardness": 2}, "hardness", Rule.FRACTION),
    (LOGITS, {"temperature": 0}, "temperature", Rule.POSITIVE),
    (LOGITS, {"hidden_weight": 1.0, "layer_map": 3}, "layer_map", Rule.LAYERS),
    (LOGITS, {"teacher_input_keys": 3}, "teacher_input_keys", Rule.NAMES),
    (MASKS, {"start_epoch": 2.0, "end_epoch": 1.0}, "start_epoch", Rule.EPOCHS),
    (FROZEN, {"params": 3}, "params", Rule.NAMES),
    (FROZEN, {"end_epoch": 0}, "end_epoch", Rule.EPOCHS),
    (STOP, {"metric": " "}, "metric", Rule.NAMES),
    (STOP, {"min_delta": -0.5}, "min_delta", Rule.NOT_NEGATIVE),
    (STOP, {"patience": 0}, "patience", Rule.COUNT),
    (STOP, {"mode": "most"}, "mode", Rule.CHOICE),
    (STOP, {"restore_best": "yes"}, "restore_best", Rule.FLAG),
]
BROKEN = [(name, *rest) for names, *rest in _ROWS for name in names]
assert len(BROKEN) == 89

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
