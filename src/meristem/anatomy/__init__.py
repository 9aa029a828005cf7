"""What a network is made of: axes, tensor roles, blocks; inferred from its own architecture, plus overrides."""

from meristem.anatomy.anatomy import Anatomy
from meristem.anatomy.builder import Builder
from meristem.anatomy.overrides import Multiplier, Override
from meristem.anatomy.structure import Axis, BlockList, Dimension, TensorAnatomy

__all__ = ["Anatomy", "Axis", "BlockList", "Builder", "Dimension", "Multiplier", "Override", "TensorAnatomy"]
