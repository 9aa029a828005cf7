"""Growth: one file per method, and the machinery that they share."""

from meristem.growth.grow import Growth, grow, grow_with_certificate
from meristem.growth.hypercloning import HyperCloning
from meristem.growth.method import Method

METHODS: dict[str, type[Method]] = {method.name: method for method in (HyperCloning,)}

__all__ = ["METHODS", "Growth", "HyperCloning", "Method", "grow", "grow_with_certificate"]
