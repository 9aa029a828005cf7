"""The options of Majority Kernels, for Python, recipes and the command line."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from meristem.errors import MeristemError, nearest
from meristem.kernels.mixture import Mixing

Start = Literal["scratch", "clone"]
Gain = Literal["training", "deployed", "none"]


@dataclass(frozen=True)
class MajorityKernels(Mixing):
    """Which weights get kernels, how the kernels begin, and how they are combined.

    Args:
        kernels, alpha, granularity, epsilon, anneal, seed: how kernels are combined (see `Mixing`).
        start: "scratch": the first kernel is the weight of the layer, and the others have its entries in
            another order. They are thus drawn from the layer's own initialisation, whatever it is. "clone":
            all kernels are the weight of a trained network plus noise that cancels in their mean. Deploying
            at once then returns the network.
        gain: the factor of the kernels when they start from scratch, because the combination of k independent
            kernels is smaller than one kernel. "training" gives the combination the scale of the layer, by
            sqrt((k alpha + 1) / (alpha + 1)). "deployed" gives it to the mean, by sqrt(k). "none" is 1.
        noise: the standard deviation of the noise on the kernels of a clone, relative to that of the weight.
        include, exclude: regular expressions that match the whole path of a layer.
        axes: only weights along one of these axes of the anatomy, by name or kind: "ffn" (feed-forward layers
            and experts), "heads" and "kv_heads" (attention), "experts", ... All by default.
        data_parallel: under DistributedDataParallel, average only the gradient of the combination over the
            processes. The traffic is then that of a plain network instead of `kernels` times as much.

    Raises:
        MeristemError: if a value is out of its range.
    """

    start: Start = "scratch"
    gain: Gain = "training"
    noise: float = 0.1
    include: str = r".*"
    exclude: str | None = None
    axes: str | Collection[str] = ()
    data_parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("start", get_args(Start)), ("gain", get_args(Gain))):
            if getattr(self, name) not in known:
                raise MeristemError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> MajorityKernels:
        """From options by name. Raises MeristemError if an option does not exist, and names the nearest
        one.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise MeristemError(f"majority has no option {name!r}; {nearest(name, known)}")
        return cls(**options)
