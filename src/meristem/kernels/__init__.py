"""Majority Kernels: each layer has several kernels. They are trained in random combinations, and their mean
is deployed.
"""

from meristem.kernels.callback import MajorityCallback as MajorityCallback
from meristem.kernels.majority import deploy as deploy
from meristem.kernels.majority import majority as majority
from meristem.kernels.majority import mix_kernels as mix_kernels
from meristem.kernels.majority import safe_learning_rate_factor as safe_learning_rate_factor
from meristem.kernels.mixture import Mixing as Mixing
from meristem.kernels.options import MajorityKernels as MajorityKernels
