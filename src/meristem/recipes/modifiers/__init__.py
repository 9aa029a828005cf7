"""Training-time methods, which all join a run by one protocol."""

from meristem.recipes.modifiers.modifier import Modifier as Modifier
from meristem.recipes.modifiers.modifier import Setting as Setting
