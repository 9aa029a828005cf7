"""Model directories: opened without trust, written whole or not at all."""

from meristem.checkpoints.open import open_model
from meristem.checkpoints.write import write_model

__all__ = ["open_model", "write_model"]
