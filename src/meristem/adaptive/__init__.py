"""Structure that is learned: infinite Boltzmann machines, EnergyNet, AdaNet; behind scikit-learn's contract."""

from meristem.adaptive.adanet import AdaNetClassifier, AdaNetRegressor, EnsembleSearch, Subnetwork
from meristem.adaptive.energynet import EnergyNetClassifier, EnergyNetRegressor
from meristem.adaptive.rbm import RBM, InfiniteRBM, InfiniteRBMClassifier, OrderedRBM

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
