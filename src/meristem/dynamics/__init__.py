"""Backward-error analysis of growth: the loss that gradient descent minimises around a growth, and a learning
rate for it.
"""

from meristem.dynamics.fields import Loss as Loss
from meristem.dynamics.fields import Parameters as Parameters
from meristem.dynamics.fields import gradient as gradient
from meristem.dynamics.fields import lie_bracket as lie_bracket
from meristem.dynamics.fields import modified_loss as modified_loss
from meristem.dynamics.junction import Junction as Junction
from meristem.dynamics.junction import junction as junction
from meristem.dynamics.junction import junction_learning_rate as junction_learning_rate
