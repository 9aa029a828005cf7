"""Deep Incubation: divide a large network, train its modules alone against a small meta network, assemble."""

from meristem.incubation.division import Division as Division
from meristem.incubation.division import divide as divide
from meristem.incubation.hybrid import Incubation as Incubation
from meristem.incubation.hybrid import assemble as assemble
from meristem.incubation.hybrid import incubate as incubate
