"""Independent seeds: the seed of each use of randomness is a hash of its purpose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def stream(*parts: int | str) -> int:
    """A seed below 2**32 (NumPy's limit), hashed from all `parts`. Two lists that differ anywhere give
    unrelated seeds.

    >>> stream(0, 1, "weights") == stream(1, 0, "weights")
    False
    """
    said = "\0".join(f"{type(part).__name__} {part}" for part in parts)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Streams:
    """The seeds of one node, from the seed of the recipe, that of the node, and the purpose."""

    recipe: int = 0
    node: int = 0

    def seed(self, *purpose: int | str) -> int:
        """The seed for this purpose ("weights", "order", ...)."""
        return stream(self.recipe, self.node, *purpose)
