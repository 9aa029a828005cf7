"""Parameters whose optimizer state is not there."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable

NAMED = 3


def say_stateless(where: object, trained: Iterable[str], with_state: Collection[str]) -> None:
    """Warn of trained parameters that have no state although others have one. Optimizers start without a
    state for them.

    Args:
        where: the file or directory that holds the state, for the sentence.
    """
    trained = list(trained)
    lacks = [name for name in trained if name not in with_state]
    if lacks and with_state:
        more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
        warnings.warn(
            f"{where} holds no state of {len(lacks)} of {len(trained)} parameters ({', '.join(lacks[:NAMED])}{more}): the optimizer "
            "starts without a state for them, as for parameters that never had a gradient",
            stacklevel=2,
        )
