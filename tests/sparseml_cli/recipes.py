"""Recipes of the tests: with our modifiers, and as SparseML's users have them."""

from tests.words import OBERT, TWO_EPOCHS

# Shares of zeros, with our recipes and with SparseML's.
SPARSITY = {"text": 0.8, "qa": 0.8, "token": 0.8, "mlm": 0.5}
OBS_SPARSITY = {"text": 0.9, "qa": 0.8, "token": 0.97, "mlm": 0.9}

_DISTILL = """\
  - !LogitDistillationModifier
      hardness: 0.5
      temperature: 2.0
"""
_SCHEDULE = """\
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
"""
_PARAMS = """\
      params:
        - re:bert.encoder.layer.*.attention.self.query.weight
        - re:bert.encoder.layer.*.attention.self.key.weight
        - re:bert.encoder.layer.*.attention.self.value.weight
        - re:bert.encoder.layer.*.attention.output.dense.weight
        - re:bert.encoder.layer.*.intermediate.dense.weight
        - re:bert.encoder.layer.*.output.dense.weight
"""
_QUANTIZATION = f"""{TWO_EPOCHS}  - !QuantizationModifier
      start_epoch: 1.0
      ignore: [LayerNorm, Dropout, Tanh, GELUActivation]
      scheme_overrides:
        Embedding:
          input_activations: null
          weights:
            num_bits: 8
            symmetric: true
"""


def _rate(
    start: float, end: float, init: str, final: str, cycle: float | None = None
) -> str:
    function = "linear"
    if cycle is not None:
        function = f"cyclic_linear\n      cycle_epochs: {cycle}"
    return f"""\
  - !LearningRateFunctionModifier
      start_epoch: {start}
      end_epoch: {end}
      lr_func: {function}
      init_lr: {init}
      final_lr: {final}
"""


def _obs(
    epochs: float, start: float, end: float, every: float, rates: str, pruning: str
) -> str:
    """Write oBERT's hyper-parameters as SparseML's recipes have them."""
    return f"""\
num_grads: 1024

training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: {epochs}
{rates}
pruning_modifiers:
  - !OBSPruningModifier
{_PARAMS}      start_epoch: {start}
      end_epoch: {end}
      update_frequency: {every}
      inter_func: cubic
      global_sparsity: True
      leave_enabled: True
      num_grads: eval(num_grads)
      damp: 1.0e-7
{pruning}"""


def _downstream(pruning: str) -> str:
    """Prune for 30 epochs."""
    rates = _rate(0.0, 2.0, "8.0e-5", "8.0e-6")
    rates += _rate(2.0, 30.0, "8.0e-5", "8.0e-6", cycle=4.0)
    return _obs(30.0, 2.0, 26.0, 4.0, rates, pruning)


def _upstream(pruning: str) -> str:
    """Prune for 3 epochs."""
    rates = f"""\
{_rate(0.0, 3.0, "5.0e-4", "5.0e-6", cycle=0.25)}  - !SetWeightDecayModifier
      weight_decay: 0.01
      param_groups: [0]
"""
    return _obs(3.0, 0.0, 2.75, 0.25, rates, pruning)


def _pruning(init: float, final: float, mask: str, width: int, batch: int) -> str:
    return f"""\
      init_sparsity: {init}
      final_sparsity: {final}
      mask_type: {mask}
      fisher_block_size: {width}
      grad_sampler_kwargs:
        batch_size: {batch}
"""


def _distillation(keys: str, temperature: float = 2.0) -> str:
    return f"""
distillation_modifiers:
  - !DistillationModifier
      hardness: 1.0
      temperature: {temperature}
      distill_output_keys: [{keys}]
"""


RECIPES = {
    # Compound compression: half of the layers, 80 % in blocks, INT8.
    "text": f"""{TWO_EPOCHS}  - !LayerDropModifier
      keep: [1, 3]
{OBERT}      mask_type: block4
{_DISTILL}  - !QATModifier
      start_epoch: 1.5
""",
    "qa": f"""{TWO_EPOCHS}{OBERT}{_DISTILL}""",
    "token": f"""{TWO_EPOCHS}{_DISTILL}  - !GMPStarPruningModifier
{_SCHEDULE}  - !FrozenParamsModifier
      params: ["re:.*embeddings.*"]
      start_epoch: 0.0
      end_epoch: 2.0
  - !WeightAveragingModifier
      start_epoch: 1.5
""",
    "mlm": f"""{TWO_EPOCHS}  - !NMPruningModifier
      mask_type: "2:4"
      score: obs
      num_grads: 16
      fisher_block_size: 16
      start_epoch: 1.0
""",
    "stopping": f"""{TWO_EPOCHS}  - !EarlyStoppingModifier
      metric: loss
      mode: max
      patience: 1
""",
    # SparseML's own oBERT, as it fails at the first pruning step.
    "obs": f"""{TWO_EPOCHS}  - !OBSPruningModifier
{_PARAMS}{_SCHEDULE}      mask_type: unstructured
      num_grads: 4
      fisher_block_size: 16
      damp: 1e-7
      grad_sampler_kwargs:
        batch_size: 4
""",
    "quantization": _QUANTIZATION,
    "quantization_mlm": _QUANTIZATION.replace(", Tanh", ""),  # no pooler
    # The form of SparseML's older recipes.
    "quantized_modules": f"""{TWO_EPOCHS}  - !QuantizationModifier
      start_epoch: 1.0
      submodules: [bert.embeddings, bert.encoder, bert.pooler]
""",
    "obs_text": _downstream(_pruning(0.7, 0.9, "unstructured", 50, 16))
    + _distillation("logits"),
    # Two of the layers are left.
    "obs_qa": f"""{_downstream(_pruning(0.3, 0.8, "block4", 32, 8))}
structured_modifiers:
  - !LayerPruningModifier
      layers: [bert.encoder.layer.1, bert.encoder.layer.2]
      start_epoch: -1.0
      end_epoch: -1.0
{_distillation("start_logits, end_logits")}""",
    "obs_token": _downstream(_pruning(0.7, 0.97, "unstructured", 50, 16)),
    "obs_mlm": _upstream(_pruning(0.7, 0.9, "unstructured", 50, 16))
    + _distillation("logits", 5.5),
    # The quantization that follows: masks kept, ranges fixed half way.
    "int8": f"""\
training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 10.0
{_rate(0.0, 10.0, "8.0e-5", "0.0")}
pruning_modifiers:
  - !ConstantPruningModifier
      start_epoch: 0.0
      params: __ALL_PRUNABLE__

quantization_modifiers:
  - !QuantizationModifier
      start_epoch: 0.0
      disable_quantization_observer_epoch: 5.0
      submodules: [bert.embeddings, bert.encoder, bert.pooler, classifier]
{_distillation("logits")}""",
}
