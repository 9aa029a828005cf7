"""Model directories: opened without trust in their contents, and written whole or not at all."""

from typing import TYPE_CHECKING

from meristem.lazily import load_when_used

if TYPE_CHECKING:
    from meristem.checkpoints.open import open_model
    from meristem.checkpoints.open_streamed import open_streamed
    from meristem.checkpoints.write import write_model

load_when_used(
    __name__,
    {
        "open_model": "meristem.checkpoints.open",
        "open_streamed": "meristem.checkpoints.open_streamed",
        "write_model": "meristem.checkpoints.write",
    },
)

__all__ = ["open_model", "open_streamed", "write_model"]
