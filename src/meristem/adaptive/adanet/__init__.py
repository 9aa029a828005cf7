"""AdaNet learns the structure and the weights of a network together."""

from meristem.adaptive.adanet.ensemble import Ensemble, Generator, Subnetwork
from meristem.adaptive.adanet.ensemble_search import EnsembleSearch
from meristem.adaptive.adanet.estimators import AdaNetClassifier, AdaNetRegressor

__all__ = ["AdaNetClassifier", "AdaNetRegressor", "Ensemble", "EnsembleSearch", "Generator", "Subnetwork"]
