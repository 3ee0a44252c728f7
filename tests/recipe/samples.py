"""Recipes and parts of recipes that load."""

import textwrap

import yaml

from tests.hosts import MISSING

EPOCHS = "  - !EpochRangeModifier\n      start_epoch: 0\n      end_epoch: 3\n"
GMP = """\
  - !GMPruningModifier
      init_sparsity: 0.0
      final_sparsity: 0.8
      start_epoch: 0.0
      end_epoch: 2.0
      update_frequency: 1.0
      params: __ALL_PRUNABLE__
"""
OBERT = """\
  - !OBERTPruningModifier
      init_sparsity: 0.0
      final_sparsity: 0.8
      start_epoch: 0.0
      end_epoch: 3.0
      update_frequency: 1.0
"""

STAGED = """\
num_epochs: 6
rate: 0.5
dense:
  num_epochs: 4
  dense_modifiers:
    - !EpochRangeModifier
        start_epoch: 0.0
        end_epoch: eval(num_epochs)
sparse:
  later: eval(num_epochs)
  sparse_modifiers:
    - !EpochRangeModifier
        start_epoch: 0.0
        end_epoch: eval(later)
    - !GMPruningModifier
        init_sparsity: eval(rate / 2)
        final_sparsity: eval(rate)
        start_epoch: 4.0
        end_epoch: 5.0
        update_frequency: 0.5
        params: ['re:layers.*weight']
"""

# One valid set of values for every modifier that a recipe can name.
SAMPLES = yaml.safe_load(r"""
.span: &span {start_epoch: 0.0, end_epoch: 3.0}
.period: &period {<<: *span, update_frequency: 1.0, params: __ALL_PRUNABLE__}
.gradual: &gradual
  {init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 0.0, end_epoch: 3.0,
   update_frequency: 0.5, params: ['re:.*\.weight']}

ACDCPruningModifier: {compression_sparsity: 0.9, <<: *period, end_epoch: 30.0}
ConstantPruningModifier: {params: __ALL_PRUNABLE__}
DistillationModifier: {hardness: 0.5, temperature: 5.5}
ConstantMasksModifier: {params: ['re:.*weight'], end_epoch: 2.0}
EarlyStoppingModifier: {metric: accuracy, patience: 3, mode: max}
EpochRangeModifier: *span
FrozenParamsModifier: {params: ['re:.*embeddings.*'], end_epoch: 2.0}
GMPStarPruningModifier: {final_sparsity: {0.9: ['re:.*a']}, end_epoch: 9}
GMPruningModifier: {<<: *gradual, mask_type: [1, 4]}
GlobalMagnitudePruningModifier: {<<: *gradual, inter_func: linear}
EmbeddingDistillationModifier: {hardness: 1.0, similarity_weight: 0.5}
GradualParamModifier:
  {<<: *period, params: ['re:.*\.alpha'], init_val: 0.1, final_val: 0.5}
LayerDropModifier: {keep: 6, choice: interleaved}
LayerPruningModifier: {layers: [bert.encoder.layer.6]}
LayerThinningModifier: {param_group_dependency_map: {a: [b]}}
LearningRateFunctionModifier:
  {<<: *span, lr_func: linear, init_lr: 1.0e-4, final_lr: 0.0}
LearningRateModifier:
  {<<: *span, lr_class: ExponentialLR, lr_kwargs: {gamma: 0.9}, init_lr: 0.01}
LogitDistillationModifier:
  {hardness: 1.0, temperature: 5.5, teacher: path/to/teacher, hidden_weight: 0.5,
   layer_map: [0, 6, 11]}
MFACPruningModifier: {<<: *gradual, num_grads: {0.0: 64, 0.5: 128}}
MagnitudePruningModifier:
  {<<: *gradual, init_sparsity: __FROM_PARAM__, params: [], mask_type: '2:4',
   final_sparsity: {0.8: ['re:a\..*'], 0.7: [b]}}
MovementPruningModifier: *gradual
NMPruningModifier: {mask_type: '2:4', start_epoch: 1.0}
OBERTPruningModifier: {<<: *gradual, num_grads: 8, damp: 1.0e-7}
OBSPruningModifier:
  {<<: *gradual, mask_type: block4, fisher_block_size: 4,
   grad_sampler_kwargs: {batch_size: 4}}
PerLayerDistillationModifier: {gain: 2.0}
PowerpropagationModifier: {<<: *span, params: __ALL_PRUNABLE__}
QATModifier:
  {start_epoch: 1.0, disable_observer_epoch: 2, per_channel: true,
   ignore: [classifier, 're:.*pooler']}
QuantizationModifier:
  {start_epoch: 1.0, scheme: {weights: {num_bits: 4}}, ignore: [Embedding]}
RigLPruningModifier: {final_sparsity: 0.9, <<: *period}
SetLearningRateModifier: {learning_rate: 0.1, start_epoch: 1.0}
SetParamModifier: {params: ['re:.*\.beta'], val: 0.5}
SetWeightDecayModifier: {weight_decay: 0.1}
SparsificationLoggingModifier: {start_epoch: 0.0}
StructuredPruningModifier: {<<: *gradual, mask_type: filter}
TopKASTPruningModifier: {forward_sparsity: 0.9, backward_sparsity: 0.5, <<: *period}
WeightAveragingModifier: {start_epoch: 0.0, decay: 0.99}
TrainableParamsModifier: {params: ['re:.*bias'], trainable: false}
""")
SAMPLES = {name: keys for name, keys in SAMPLES.items() if name[0] != "."}
HERE = {name: keys for name, keys in SAMPLES.items() if name not in MISSING}


def one_modifier(name: str, values: dict) -> str:
    """Return a recipe with one modifier, in the block form that SparseML can read."""
    keys = textwrap.indent(yaml.safe_dump(values, sort_keys=False), " " * 6)
    return f"modifiers:\n  - !{name}\n{keys}"


def group(*modifiers: str) -> str:
    """Return a recipe with one group of modifiers."""
    return "modifiers:\n" + "".join(modifiers)


def same_modifiers(one, two) -> bool:
    """Tell whether two lists hold the same modifiers with the same settings."""
    return [m.identifier() for m in one] == [m.identifier() for m in two]
