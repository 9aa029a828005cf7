"""Meristem: train large neural networks cheaply by growing them from small ones.

Names are loaded lazily: `import meristem as ms` costs nothing until a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "AxisMap": "meristem.algebra",
    "Layout": "meristem.algebra",
    "Anatomy": "meristem.anatomy",
    "Override": "meristem.anatomy",
    "grow": "meristem.growth.grow",
    "shrink": "meristem.growth.grow",
    "fuse": "meristem.growth.fuse",
    "fuse_with_certificate": "meristem.growth.fuse",
    "fuse_optimizer": "meristem.growth.fusion.optimizer",
    "count_blocks_apart": "meristem.growth.optimizers.block_steps",
    "load_missed_steps": "meristem.checkpoints.missed_steps",
    "DeepFusion": "meristem.growth.methods.deep_fusion",
    "Rebasin": "meristem.growth.methods.rebasin",
    "grow_optimizer": "meristem.growth.grow",
    "Growth": "meristem.growth.growth",
    "Provenance": "meristem.growth.provenance",
    "provenance": "meristem.checkpoints.provenance",
    "average": "meristem.checkpoints.average",
    "load_certificate": "meristem.checkpoints.certificate",
    "push_to_hub": "meristem.checkpoints.hub",
    "freeze_old": "meristem.growth.train_new",
    "parameter_groups": "meristem.growth.train_new",
    "MissedStepsCallback": "meristem.growth.optimizers.missed_callback",
    "TrainNewCallback": "meristem.growth.callback",
    "grow_sharded": "meristem.growth.sharded",
    "HyperCloning": "meristem.growth.methods.hypercloning",
    "Net2Net": "meristem.growth.methods.net2net",
    "AKI": "meristem.growth.methods.aki",
    "LEMON": "meristem.growth.methods.lemon",
    "LiGO": "meristem.growth.methods.ligo",
    "ZeroPadding": "meristem.growth.methods.zero_padding",
    "ShrinkZeroPadPerturb": "meristem.growth.methods.shrink_perturb",
    "Stacking": "meristem.growth.methods.stacking",
    "GradualStacking": "meristem.growth.methods.stacking",
    "MIDAS": "meristem.growth.methods.stacking",
    "IdentityBlocks": "meristem.growth.methods.stacking",
    "GrowDontOverwrite": "meristem.growth.methods.grow_dont_overwrite",
    "MoreExperts": "meristem.growth.methods.more_experts",
    "rank_layers": "meristem.growth.rank_layers",
    "Upcycle": "meristem.growth.methods.upcycle",
    "WeightSelection": "meristem.growth.methods.weight_selection",
    "Prune": "meristem.growth.methods.prune",
    "subnetwork": "meristem.subnetworks.gate",
    "SubnetworkSchedule": "meristem.subnetworks.schedule",
    "BottomLayers": "meristem.subnetworks.schedule",
    "LayerDrop": "meristem.subnetworks.schedule",
    "StochasticDepth": "meristem.subnetworks.schedule",
    "ProgressiveLayerDropping": "meristem.subnetworks.schedule",
    "RaptrCallback": "meristem.subnetworks.callback",
    "hold_unselected": "meristem.subnetworks.width",
    "majority": "meristem.kernels.majority",
    "mix_kernels": "meristem.kernels.majority",
    "deploy": "meristem.kernels.majority",
    "MajorityKernels": "meristem.kernels.options",
    "MajorityCallback": "meristem.kernels.callback",
    "block_costs": "meristem.incubation.costs",
    "cached_prefix": "meristem.incubation.prefix_cache",
    "divide": "meristem.incubation.division",
    "incubate": "meristem.incubation.hybrid",
    "assemble": "meristem.incubation.assembly",
    "verify": "meristem.certificates",
    "Certificate": "meristem.certificates",
    "MeristemError": "meristem.errors",
    "PreservationError": "meristem.errors",
}

if TYPE_CHECKING:
    from meristem.algebra import AxisMap as AxisMap
    from meristem.algebra import Layout as Layout
    from meristem.anatomy import Anatomy as Anatomy
    from meristem.anatomy import Override as Override
    from meristem.certificates import Certificate as Certificate
    from meristem.certificates import verify as verify
    from meristem.checkpoints.average import average as average
    from meristem.checkpoints.certificate import load_certificate as load_certificate
    from meristem.checkpoints.hub import push_to_hub as push_to_hub
    from meristem.checkpoints.missed_steps import load_missed_steps as load_missed_steps
    from meristem.checkpoints.provenance import provenance as provenance
    from meristem.errors import MeristemError as MeristemError
    from meristem.errors import PreservationError as PreservationError
    from meristem.growth.callback import TrainNewCallback as TrainNewCallback
    from meristem.growth.fuse import fuse as fuse
    from meristem.growth.fuse import fuse_with_certificate as fuse_with_certificate
    from meristem.growth.fusion.optimizer import fuse_optimizer as fuse_optimizer
    from meristem.growth.grow import grow as grow
    from meristem.growth.grow import grow_optimizer as grow_optimizer
    from meristem.growth.grow import shrink as shrink
    from meristem.growth.growth import Growth as Growth
    from meristem.growth.methods.aki import AKI as AKI
    from meristem.growth.methods.deep_fusion import DeepFusion as DeepFusion
    from meristem.growth.methods.grow_dont_overwrite import GrowDontOverwrite as GrowDontOverwrite
    from meristem.growth.methods.hypercloning import HyperCloning as HyperCloning
    from meristem.growth.methods.lemon import LEMON as LEMON
    from meristem.growth.methods.ligo import LiGO as LiGO
    from meristem.growth.methods.more_experts import MoreExperts as MoreExperts
    from meristem.growth.methods.net2net import Net2Net as Net2Net
    from meristem.growth.methods.prune import Prune as Prune
    from meristem.growth.methods.rebasin import Rebasin as Rebasin
    from meristem.growth.methods.shrink_perturb import ShrinkZeroPadPerturb as ShrinkZeroPadPerturb
    from meristem.growth.methods.stacking import MIDAS as MIDAS
    from meristem.growth.methods.stacking import GradualStacking as GradualStacking
    from meristem.growth.methods.stacking import IdentityBlocks as IdentityBlocks
    from meristem.growth.methods.stacking import Stacking as Stacking
    from meristem.growth.methods.upcycle import Upcycle as Upcycle
    from meristem.growth.methods.weight_selection import WeightSelection as WeightSelection
    from meristem.growth.methods.zero_padding import ZeroPadding as ZeroPadding
    from meristem.growth.optimizers.block_steps import count_blocks_apart as count_blocks_apart
    from meristem.growth.optimizers.missed_callback import MissedStepsCallback as MissedStepsCallback
    from meristem.growth.provenance import Provenance as Provenance
    from meristem.growth.rank_layers import rank_layers as rank_layers
    from meristem.growth.sharded import grow_sharded as grow_sharded
    from meristem.growth.train_new import freeze_old as freeze_old
    from meristem.growth.train_new import parameter_groups as parameter_groups
    from meristem.incubation.assembly import assemble as assemble
    from meristem.incubation.costs import block_costs as block_costs
    from meristem.incubation.division import divide as divide
    from meristem.incubation.hybrid import incubate as incubate
    from meristem.incubation.prefix_cache import cached_prefix as cached_prefix
    from meristem.kernels.callback import MajorityCallback as MajorityCallback
    from meristem.kernels.majority import deploy as deploy
    from meristem.kernels.majority import majority as majority
    from meristem.kernels.majority import mix_kernels as mix_kernels
    from meristem.kernels.options import MajorityKernels as MajorityKernels
    from meristem.subnetworks.callback import RaptrCallback as RaptrCallback
    from meristem.subnetworks.gate import subnetwork as subnetwork
    from meristem.subnetworks.schedule import BottomLayers as BottomLayers
    from meristem.subnetworks.schedule import LayerDrop as LayerDrop
    from meristem.subnetworks.schedule import ProgressiveLayerDropping as ProgressiveLayerDropping
    from meristem.subnetworks.schedule import StochasticDepth as StochasticDepth
    from meristem.subnetworks.schedule import SubnetworkSchedule as SubnetworkSchedule
    from meristem.subnetworks.width import hold_unselected as hold_unselected

__all__ = [*sorted(_HOMES), "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        from meristem.errors import nearest

        raise AttributeError(f"module 'meristem' has no attribute {name!r}; {nearest(name, _HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
