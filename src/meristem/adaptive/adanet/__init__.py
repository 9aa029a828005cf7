"""AdaNet learns the structure and the weights of a network together."""

from meristem.adaptive.adanet.ensemble import Ensemble, EnsembleSearch, Generator, Subnetwork
from meristem.adaptive.adanet.estimators import AdaNetClassifier, AdaNetRegressor

__all__ = ["AdaNetClassifier", "AdaNetRegressor", "Ensemble", "EnsembleSearch", "Generator", "Subnetwork"]
