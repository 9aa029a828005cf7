"""EnergyNet learns layers from the energy of infinite RBMs, and then trains an ordinary network from them."""

from meristem.adaptive.energynet.estimators import EnergyNetClassifier, EnergyNetRegressor

__all__ = ["EnergyNetClassifier", "EnergyNetRegressor"]
