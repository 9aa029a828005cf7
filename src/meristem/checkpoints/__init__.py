"""Model directories: opened without trust, written whole or not at all."""

from meristem.checkpoints.open import open_model
from meristem.checkpoints.open_streamed import open_streamed
from meristem.checkpoints.write import write_model

__all__ = ["open_model", "open_streamed", "write_model"]
