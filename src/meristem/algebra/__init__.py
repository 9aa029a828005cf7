"""The tensor mathematics of growth. Nothing here depends on models."""

from meristem.algebra.axis_map import AxisMap
from meristem.algebra.layout import Layout
from meristem.algebra.unit_map import UnitMap

__all__ = ["AxisMap", "Layout", "UnitMap"]
