"""Estimators that learn their structure, with scikit-learn's interface: infinite Boltzmann machines,
EnergyNet and AdaNet.
"""

from typing import TYPE_CHECKING

from meristem.lazily import load_when_used

if TYPE_CHECKING:
    from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor, EnsembleSearch, Subnetwork
    from meristem.adaptive.energynet import EnergyNetClassifier, EnergyNetRegressor
    from meristem.adaptive.rbm import RBM, InfiniteRBM, InfiniteRBMClassifier, OrderedRBM

load_when_used(
    __name__,
    {
        "AdaNetClassifier": "meristem.adaptive.adanet",
        "AdaNetRegressor": "meristem.adaptive.adanet",
        "EnsembleSearch": "meristem.adaptive.adanet",
        "Subnetwork": "meristem.adaptive.adanet",
        "EnergyNetClassifier": "meristem.adaptive.energynet",
        "EnergyNetRegressor": "meristem.adaptive.energynet",
        "RBM": "meristem.adaptive.rbm",
        "InfiniteRBM": "meristem.adaptive.rbm",
        "InfiniteRBMClassifier": "meristem.adaptive.rbm",
        "OrderedRBM": "meristem.adaptive.rbm",
    },
)

__all__ = [
    "RBM",
    "AdaNetClassifier",
    "AdaNetRegressor",
    "EnergyNetClassifier",
    "EnergyNetRegressor",
    "EnsembleSearch",
    "InfiniteRBM",
    "InfiniteRBMClassifier",
    "OrderedRBM",
    "Subnetwork",
]
