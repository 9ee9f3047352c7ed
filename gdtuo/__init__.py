"""Gradient descent for the numbers of gradient descent, as high as you like."""

from . import compat
from .domains import Domain, Positive, Real, UnitInterval
from .level import Learning, Level
from .optimizers import SGD, AdaGrad, Adam, AdamW, RMSProp
from .rules import Rule, safe_divide, safe_sqrt
from .text import tower

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Domain",
    "Learning",
    "Level",
    "Positive",
    "RMSProp",
    "Real",
    "Rule",
    "UnitInterval",
    "compat",
    "safe_divide",
    "safe_sqrt",
    "tower",
]
