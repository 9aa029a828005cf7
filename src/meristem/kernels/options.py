"""The options of Majority Kernels, for Python, recipes and the command line alike."""

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
    """Which weights get kernels, how these begin, and how they are combined.

    Args:
        kernels, alpha, granularity, epsilon, anneal, seed: see `Mixing`.
        start: "scratch": the first kernel is the layer's weight, the others are its entries in another order (the layer's own
            initialisation drawn anew, whatever it is); "clone": all kernels are the weight of a trained network plus noise that their
            mean does not have, so that deploying at once gives the network back.
        gain: what kernels are multiplied by at the start from scratch. The combination of k independent kernels is smaller than one:
            "training" brings the combination to the layer's own scale, sqrt((k alpha + 1) / (alpha + 1)); "deployed" the mean, sqrt(k).
        noise: of a clone's kernels, relative to the standard deviation of the weight.
        include, exclude: regular expressions on the path of a layer (whole match).
        axes: only weights along one of these axes (or this one) of the network's anatomy, by name or kind: "ffn" (feed-forward layers and
            experts), "heads" and "kv_heads" (attention), "experts", ... All by default.
        data_parallel: under DistributedDataParallel, average only the gradient of the combination over the processes: the traffic
            of a plain network instead of `kernels` times it.

    Raises:
        MeristemError: for values outside their ranges.
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
        """From options by name. Raises MeristemError for one that there is not, naming the nearest."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise MeristemError(f"majority has no option {name!r}; {nearest(name, known)}")
        return cls(**options)
