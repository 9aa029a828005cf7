"""Train a large network in parts: RAPTR and its relatives."""

from meristem.subnetworks.gate import subnetwork as subnetwork
from meristem.subnetworks.path import Path as Path
from meristem.subnetworks.schedule import BottomLayers as BottomLayers
from meristem.subnetworks.schedule import LayerDrop as LayerDrop
from meristem.subnetworks.schedule import ProgressiveLayerDropping as ProgressiveLayerDropping
from meristem.subnetworks.schedule import Schedule as Schedule
from meristem.subnetworks.schedule import StochasticDepth as StochasticDepth
from meristem.subnetworks.schedule import SubnetworkSchedule as SubnetworkSchedule
