"""Deep Incubation: divide a large network, train each of its modules within a small meta network, and
assemble them.
"""

from meristem.incubation.assembly import assemble as assemble
from meristem.incubation.costs import block_costs as block_costs
from meristem.incubation.division import Division as Division
from meristem.incubation.division import divide as divide
from meristem.incubation.hybrid import Incubation as Incubation
from meristem.incubation.hybrid import incubate as incubate
from meristem.incubation.prefix_cache import cached_prefix as cached_prefix
