"""Recipes of the tests: with our modifiers, and as SparseML's users have them."""

from tests.words import OBERT, TWO_EPOCHS

_DISTILL = """\
  - !LogitDistillationModifier
      hardness: 0.5
      temperature: 2.0
"""
# Compound compression: half of the layers, 80 % in blocks, INT8.
TEXT = f"""{TWO_EPOCHS}  - !LayerDropModifier
      keep: [1, 3]
{OBERT}      mask_type: block4
{_DISTILL}  - !QATModifier
      start_epoch: 1.5
"""
QA = f"""{TWO_EPOCHS}{OBERT}{_DISTILL}"""
TOKEN = f"""{TWO_EPOCHS}{_DISTILL}  - !GMPStarPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
  - !FrozenParamsModifier
      params: ["re:.*embeddings.*"]
      start_epoch: 0.0
      end_epoch: 2.0
"""
MLM = f"""{TWO_EPOCHS}  - !NMPruningModifier
      mask_type: "2:4"
      score: obs
      num_grads: 16
      fisher_block_size: 16
      start_epoch: 1.0
"""
STOPPING = f"""{TWO_EPOCHS}  - !EarlyStoppingModifier
      metric: loss
      mode: max
      patience: 1
"""
SPARSITY = {"text": 0.8, "qa": 0.8, "token": 0.8, "mlm": 0.5}

_PARAMS = """\
      params:
        - re:bert.encoder.layer.*.attention.self.query.weight
        - re:bert.encoder.layer.*.attention.self.key.weight
        - re:bert.encoder.layer.*.attention.self.value.weight
        - re:bert.encoder.layer.*.attention.output.dense.weight
        - re:bert.encoder.layer.*.intermediate.dense.weight
        - re:bert.encoder.layer.*.output.dense.weight
"""
# SparseML's own oBERT, as it fails at the first pruning step.
OBS = f"""{TWO_EPOCHS}  - !OBSPruningModifier
{_PARAMS}      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
      mask_type: unstructured
      num_grads: 4
      fisher_block_size: 16
      damp: 1e-7
      grad_sampler_kwargs:
        batch_size: 4
"""
QUANTIZATION = f"""{TWO_EPOCHS}  - !QuantizationModifier
      start_epoch: 1.0
      ignore: [LayerNorm, Dropout, Tanh, GELUActivation]
      scheme_overrides:
        Embedding:
          input_activations: null
          weights:
            num_bits: 8
            symmetric: true
"""
# The form of SparseML's older recipes.
QUANTIZED_MODULES = f"""{TWO_EPOCHS}  - !QuantizationModifier
      start_epoch: 1.0
      submodules: [bert.embeddings, bert.encoder, bert.pooler]
"""


def _obs(
    epochs: float, start: float, end: float, every: float, pruning: str, rates: str
) -> str:
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


def _distillation(keys: str, temperature: float = 2.0) -> str:
    return f"""
distillation_modifiers:
  - !DistillationModifier
      hardness: 1.0
      temperature: {temperature}
      distill_output_keys: [{keys}]
"""


_DOWNSTREAM = """\
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: 2.0
      lr_func: linear
      init_lr: 8.0e-5
      final_lr: 8.0e-6
  - !LearningRateFunctionModifier
      start_epoch: 2.0
      end_epoch: 30.0
      lr_func: cyclic_linear
      cycle_epochs: 4.0
      init_lr: 8.0e-5
      final_lr: 8.0e-6
"""
_BLOCKS = """\
      init_sparsity: 0.3
      final_sparsity: 0.8
      mask_type: block4
      fisher_block_size: 32
      grad_sampler_kwargs:
        batch_size: 8
"""


def _unstructured(final: float) -> str:
    return f"""\
      init_sparsity: 0.7
      final_sparsity: {final}
      mask_type: unstructured
      fisher_block_size: 50
      grad_sampler_kwargs:
        batch_size: 16
"""


# oBERT's hyper-parameters: 30 epochs downstream, 3 layers in blocks, 3 epochs upstream.
OBS_TEXT = _obs(30.0, 2.0, 26.0, 4.0, _unstructured(0.9), _DOWNSTREAM)
OBS_TEXT += _distillation("logits")
OBS_QA = _obs(30.0, 2.0, 26.0, 4.0, _BLOCKS, _DOWNSTREAM)
OBS_QA += """
structured_modifiers:
  - !LayerPruningModifier
      layers: [bert.encoder.layer.1, bert.encoder.layer.2]
      start_epoch: -1.0
      end_epoch: -1.0
"""
OBS_QA += _distillation("start_logits, end_logits")
OBS_TOKEN = _obs(30.0, 2.0, 26.0, 4.0, _unstructured(0.97), _DOWNSTREAM)
_UPSTREAM = """\
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: 3.0
      lr_func: cyclic_linear
      cycle_epochs: 0.25
      init_lr: 5.0e-4
      final_lr: 5.0e-6
  - !SetWeightDecayModifier
      weight_decay: 0.01
      param_groups: [0]
"""
OBS_MLM = _obs(3.0, 0.0, 2.75, 0.25, _unstructured(0.9), _UPSTREAM)
OBS_MLM += _distillation("logits", 5.5)
# The quantization that follows: masks kept, ranges fixed half way.
INT8 = """\
training_modifiers:
  - !EpochRangeModifier
      start_epoch: 0.0
      end_epoch: 10.0
  - !LearningRateFunctionModifier
      start_epoch: 0.0
      end_epoch: 10.0
      lr_func: linear
      init_lr: 8.0e-5
      final_lr: 0.0

pruning_modifiers:
  - !ConstantPruningModifier
      start_epoch: 0.0
      params: __ALL_PRUNABLE__

quantization_modifiers:
  - !QuantizationModifier
      start_epoch: 0.0
      disable_quantization_observer_epoch: 5.0
      submodules: [bert.embeddings, bert.encoder, bert.pooler, classifier]
"""
INT8 += _distillation("logits")
OBS_SPARSITY = {"text": 0.9, "qa": 0.8, "token": 0.97, "mlm": 0.9}
