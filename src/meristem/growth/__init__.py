"""Growth: one file for each method, and the code that they share."""

from meristem.growth.fuse import fuse, fuse_with_certificate
from meristem.growth.grow import grow, grow_optimizer, grow_with_certificate, shrink
from meristem.growth.growth import Growth
from meristem.growth.methods.aki import AKI
from meristem.growth.methods.deep_fusion import DeepFusion
from meristem.growth.methods.grow_dont_overwrite import GrowDontOverwrite
from meristem.growth.methods.hypercloning import HyperCloning
from meristem.growth.methods.lemon import LEMON
from meristem.growth.methods.ligo import LiGO
from meristem.growth.methods.method import Method
from meristem.growth.methods.more_experts import MoreExperts
from meristem.growth.methods.net2net import Net2Net
from meristem.growth.methods.prune import Prune
from meristem.growth.methods.rebasin import Rebasin
from meristem.growth.methods.shrink_perturb import ShrinkZeroPadPerturb
from meristem.growth.methods.stacking import MIDAS, GradualStacking, IdentityBlocks, Stacking
from meristem.growth.methods.upcycle import Upcycle
from meristem.growth.methods.weight_selection import WeightSelection
from meristem.growth.methods.zero_padding import ZeroPadding

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        HyperCloning,
        Net2Net,
        AKI,
        LEMON,
        LiGO,
        ZeroPadding,
        ShrinkZeroPadPerturb,
        Stacking,
        GradualStacking,
        MIDAS,
        IdentityBlocks,
        GrowDontOverwrite,
        Upcycle,
        MoreExperts,
        WeightSelection,
        Prune,
    )
}

__all__ = [
    "AKI",
    "LEMON",
    "METHODS",
    "MIDAS",
    "DeepFusion",
    "Rebasin",
    "GradualStacking",
    "GrowDontOverwrite",
    "Growth",
    "HyperCloning",
    "IdentityBlocks",
    "LiGO",
    "Method",
    "MoreExperts",
    "Net2Net",
    "Prune",
    "ShrinkZeroPadPerturb",
    "Stacking",
    "Upcycle",
    "WeightSelection",
    "ZeroPadding",
    "fuse",
    "fuse_with_certificate",
    "grow",
    "grow_optimizer",
    "grow_with_certificate",
    "shrink",
]
