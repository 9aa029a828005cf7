"""Boltzmann machines: plain, ordered, and infinite ones, which grow while they learn."""

from meristem.adaptive.rbm.classifier import InfiniteRBMClassifier
from meristem.adaptive.rbm.estimators import RBM
from meristem.adaptive.rbm.infinite import InfiniteRBM, OrderedRBM

__all__ = ["RBM", "InfiniteRBM", "InfiniteRBMClassifier", "OrderedRBM"]
