"""What single families do that neither names nor shapes can tell. A user can pass further entries to `Anatomy.of`.

Each entry says one fact about the mathematics of a model type, as data:

- `layouts`: a module name (regular expression on its full path) whose output or input dimension has a layout of its own;
- `alibi`: a config flag, or True: attention adds ALiBi slopes, so a head only keeps its function where its slope does;
- `multipliers`: the forward pass multiplies by a power of a config field, where a flag says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Multiplier:
    """The output of the tensor named `tensor` is multiplied by `config.field ** exponent` (if `config.when` is true)."""

    tensor: str
    field: str
    exponent: float
    when: str | None = None


@dataclass(frozen=True)
class Override:
    """Facts about one model type. `layouts` rows are (module path pattern, "in" or "out", layout)."""

    layouts: tuple[tuple[str, str, str], ...] = ()
    alibi: bool | str = False
    multipliers: tuple[Multiplier, ...] = field(default=())


OVERRIDES: Mapping[str, Override] = {
    "bloom": Override(alibi=True),
    "falcon": Override(alibi="alibi"),
    "t5": Override(multipliers=(Multiplier("lm_head.weight", "d_model", -0.5, when="scale_decoder_outputs"),)),
}
