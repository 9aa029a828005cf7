"""The structure of a network: axes, roles of tensors, and blocks. It is inferred from the architecture and
completed by overrides.
"""

from meristem.anatomy.anatomy import Anatomy
from meristem.anatomy.builder import Builder
from meristem.anatomy.overrides import Multiplier, Override
from meristem.anatomy.structure import Axis, BlockList, Dimension, TensorAnatomy

__all__ = ["Anatomy", "Axis", "BlockList", "Builder", "Dimension", "Multiplier", "Override", "TensorAnatomy"]
