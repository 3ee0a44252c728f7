"""Recipe values that the pruning modifiers refuse, and with which words."""

BROKEN = [
    (
        {"final_sparsity": 80},
        "final_sparsity=80 is outside [0, 1]; expected a fraction; write 0.8, not 80",
    ),
    (
        {"init_sparsity": -0.1},
        "init_sparsity=-0.1 is outside [0, 1]; expected a fraction; write a number "
        "between 0 and 1",
    ),
    (
        {"final_sparsity": "most"},
        "final_sparsity=most is not a number; expected a finite number; write it "
        "without quotes or units",
    ),
    (
        {"final_sparsity": {1.5: ["a"]}, "params": []},
        "final_sparsity=1.5 is outside [0, 1]; expected a fraction; write 0.015, not "
        "1.5",
    ),
    (
        {"end_epoch": 0.5},
        "end_epoch=0.5 lies before start_epoch=1; expected a schedule that ends "
        "after it starts; swap them or raise end_epoch",
    ),
    (
        {"inter_func": "cubik"},
        "inter_func=cubik is unknown; expected one of linear, cubic, inverse_cubic; "
        "use cubic",
    ),
    (
        {"mask_type": "unstructred"},
        "mask_type=unstructred is unknown; expected one of unstructured, block4, "
        "block:RxC, N:M; use unstructured",
    ),
    (
        {"global_sparsity": "yes"},
        "global_sparsity=yes is not a truth value; expected true or false; write it "
        "without quotes",
    ),
    (
        {"update_frequency": 0},
        "update_frequency=0 is not positive; expected epochs between events, or -1 "
        "for every step; write a fraction of an epoch",
    ),
    (
        {"params": [3]},
        "params=3 is not a name; expected names or re: patterns; write a list of "
        "strings",
    ),
    (
        {"final_sparsity": {0.5: ["a"]}, "params": ["b"]},
        "params=['b'] and a mapping in final_sparsity are both given; expected the "
        "parameters in one place; write params: []",
    ),
]
BROKEN_OBERT = [
    (
        {"num_grads": 0},
        "num_grads=0 is not a positive whole number; expected 1 or more; write a count",
    ),
    (
        {"fisher_block_size": 2.5},
        "fisher_block_size=2.5 is not a positive whole number; expected 1 or more; "
        "write a count",
    ),
    (
        {"damp": 0.0},
        "damp=0.0 is not positive; expected a number above 0; raise it",
    ),
    (
        {"damp": 1e-07, "damp_fraction": 0.1},
        "damp=1e-07 and damp_fraction=0.1 are both given; expected one of them; "
        "leave damp out",
    ),
    (
        {"selection": "gready"},
        "selection=gready is unknown; expected one of independent, greedy; use greedy",
    ),
    (
        {"update": "none"},
        "update=none is unknown; expected one of joint, independent; use joint",
    ),
    (
        {"grad_granularity": "token"},
        "grad_granularity=token is unknown; expected one of sample, batch; use sample",
    ),
    (
        {"grad_sampler_kwargs": 8},
        "grad_sampler_kwargs=8 is not a mapping; expected options of the loader; "
        "write batch_size: 32 below it",
    ),
]
BROKEN_NM = [
    (
        {"mask_type": "block4"},
        "mask_type=block4 is not N:M; expected N kept of every M weights, as in 2:4; "
        "use OBERTPruningModifier or GMPStarPruningModifier for it",
    ),
    (
        {"mask_type": "4:4"},
        "mask_type=4:4 keeps 4 of every 4 weights; expected fewer kept than M; use 2:4",
    ),
    (
        {"score": "fisher"},
        "score=fisher is unknown; expected one of magnitude, obs; use magnitude",
    ),
    (
        {"gradual": "by_m"},
        "gradual=by_m is unknown; expected one of one_shot, by_fraction, by_n; use "
        "by_n",
    ),
    (
        {"end_epoch": 2.0},
        "end_epoch=2 is after start_epoch=0 with gradual: one_shot; expected one "
        "event; leave end_epoch out or write gradual: by_n",
    ),
    (
        {"gradual": "by_n"},
        "gradual=by_n has no time between start_epoch=0 and end_epoch=0; expected a "
        "later end_epoch; raise it or write gradual: one_shot",
    ),
    (
        {"gradual": "by_fraction", "end_epoch": 1.0},
        "gradual=by_fraction comes without update_frequency; expected the epochs "
        "between two events; write update_frequency: 0.5",
    ),
    (
        {"num_grads": 64},
        "num_grads=64 is a key of score: obs; expected none of them with score: "
        "magnitude; leave it out or write score: obs",
    ),
    (
        {"score": "obs", "fisher_block_size": 50},
        "fisher_block_size=50 is not a multiple of group_size=4 (mask_type: 2:4); use "
        "48",
    ),
    (
        {"score": "obs", "damp": 1e-07, "damp_fraction": 0.1},
        "damp=1e-07 and damp_fraction=0.1 are both given; expected one of them; "
        "leave damp out",
    ),
    (
        {"score": "obs", "memory_budget": "much"},
        "memory_budget=much is not an amount of memory; expected bytes, or a number "
        "with a unit; write 8GB or 8GiB",
    ),
]
assert (len(BROKEN), len(BROKEN_OBERT), len(BROKEN_NM)) == (11, 8, 11)
