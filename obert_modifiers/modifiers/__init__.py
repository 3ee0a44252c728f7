"""The modifiers, a line each; importing this package registers their YAML tags.

The rest of the package finds them in the registry.
"""

from obert_modifiers.modifiers.averaging import WeightAveragingModifier
from obert_modifiers.modifiers.constant_masks import ConstantMasksModifier
from obert_modifiers.modifiers.distillation import LogitDistillationModifier
from obert_modifiers.modifiers.early_stopping import EarlyStoppingModifier
from obert_modifiers.modifiers.embedding import EmbeddingDistillationModifier
from obert_modifiers.modifiers.frozen import FrozenParamsModifier
from obert_modifiers.modifiers.gmp_star import GMPStarPruningModifier
from obert_modifiers.modifiers.keys import REGISTRY
from obert_modifiers.modifiers.layer_drop import LayerDropModifier
from obert_modifiers.modifiers.nm import NMPruningModifier
from obert_modifiers.modifiers.obert import OBERTPruningModifier
from obert_modifiers.modifiers.qat import QATModifier

__all__ = [*REGISTRY]
