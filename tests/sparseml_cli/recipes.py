"""Recipes of the tests: with our modifiers, and as SparseML's users have them."""

_TWO_EPOCHS = """\
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
_OBERT = """\
  - !OBERTPruningModifier
      init_sparsity: 0.5
      final_sparsity: 0.8
      start_epoch: 0.5
      end_epoch: 1.5
      update_frequency: 0.5
      num_grads: 16
      fisher_block_size: 16
"""
_DISTILL = """\
  - !LogitDistillationModifier
      hardness: 0.5
      temperature: 2.0
"""
# Compound compression: half of the layers, 80 % in blocks, INT8.
TEXT = f"""{_TWO_EPOCHS}  - !LayerDropModifier
      keep: [1, 3]
{_OBERT}      mask_type: block4
{_DISTILL}  - !QATModifier
      start_epoch: 1.5
"""
QA = f"""{_TWO_EPOCHS}{_OBERT}{_DISTILL}"""
TOKEN = f"""{_TWO_EPOCHS}{_DISTILL}  - !GMPStarPruningModifier
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
MLM = f"""{_TWO_EPOCHS}  - !NMPruningModifier
      mask_type: "2:4"
      score: obs
      num_grads: 16
      fisher_block_size: 16
      start_epoch: 1.0
"""
STOPPING = f"""{_TWO_EPOCHS}  - !EarlyStoppingModifier
      metric: loss
      mode: max
      patience: 1
"""
SPARSITY = {"text": 0.8, "qa": 0.8, "token": 0.8, "mlm": 0.5}

# SparseML's own oBERT, as it fails at the first pruning step.
OBS = f"""{_TWO_EPOCHS}  - !OBSPruningModifier
      params: ["re:bert.encoder.layer.*.weight"]
      init_sparsity: 0.5
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
QUANTIZATION = f"""{_TWO_EPOCHS}  - !QuantizationModifier
      start_epoch: 1.0
      submodules: [bert.embeddings, bert.encoder]
"""
