"""What a network does with its tensors, watched in a forward pass: which dimensions are contracted, produced,
concatenated.
"""

from meristem.anatomy.tracing.agree import check_conflicts, is_guessed, seen_layout, told_roles
from meristem.anatomy.tracing.trace import Traced, traced

__all__ = ["Traced", "check_conflicts", "is_guessed", "seen_layout", "told_roles", "traced"]
