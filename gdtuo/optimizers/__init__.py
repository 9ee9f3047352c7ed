"""One algorithm a file: its rule and its public class."""

from .adagrad import AdaGrad, AdaGradRule
from .adam import Adam, AdamRule, AdamW, AdamWRule
from .rmsprop import RMSProp, RMSPropRule
from .sgd import SGD, SGDRule

__all__ = [
    "SGD",
    "AdaGrad",
    "AdaGradRule",
    "Adam",
    "AdamRule",
    "AdamW",
    "AdamWRule",
    "RMSProp",
    "RMSPropRule",
    "SGDRule",
]
