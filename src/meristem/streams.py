"""Seeds that do not depend on each other: each use of randomness hashes its own out of where it stands."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def stream(*parts: int | str) -> int:
    """A seed below 2**32 (NumPy's limit), hashed out of all `parts`: two lists that differ anywhere give unrelated seeds.

    >>> stream(0, 1, "weights") == stream(1, 0, "weights")
    False
    """
    said = "\0".join(f"{type(part).__name__} {part}" for part in parts)
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Streams:
    """The seeds of one node: by the recipe's seed, the node's own, and what each is for."""

    recipe: int = 0
    node: int = 0

    def seed(self, *purpose: int | str) -> int:
        """Of this purpose ("weights", "order", ...)."""
        return stream(self.recipe, self.node, *purpose)
