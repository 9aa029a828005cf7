"""EnergyNet: layers learned from the energy of infinite RBMs, then an ordinary network that starts from them."""

from meristem.adaptive.energynet.estimators import EnergyNetClassifier, EnergyNetRegressor

__all__ = ["EnergyNetClassifier", "EnergyNetRegressor"]
