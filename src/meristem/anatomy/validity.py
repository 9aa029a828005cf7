"""Whether transformers accepts a config of other sizes. It would otherwise complain only when the network is
saved, after all the work.
"""

from __future__ import annotations

from typing import Any

from meristem.errors import MeristemError


def check_config(config: Any, original: Any) -> None:
    """Raises MeristemError, with the reason of transformers, if `config` fails the checks that its original
    passes.
    """
    reason = _objection(config)
    if reason is not None and _objection(original) is None:
        raise MeristemError(f"transformers does not accept this {config.model_type}: {reason}{_nearest(config)}")


def _objection(config: Any) -> str | None:
    """The last line of what its validators say, or None."""
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))):
        validate = getattr(part, "validate", None)
        if validate is None:
            continue
        try:
            validate()
        except Exception as error:
            return str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ").removesuffix(".")
    return None


def _nearest(config: Any) -> str:
    """Nearby widths that its heads divide evenly."""
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads == 0:
        return ""
    below = hidden // heads * heads
    return f"; hidden_size={below or heads} or {below + heads} would work"
