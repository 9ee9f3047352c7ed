"""One algorithm a file: its rule and its public class."""

from .adagrad import AdaGrad, AdaGradRule
from .adam import Adam, AdamRule, AdamW, AdamWRule
from .averaging import AveragingSGD, AveragingSGDRule
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
    "AveragingSGD",
    "AveragingSGDRule",
    "RMSProp",
    "RMSPropRule",
    "SGDRule",
]
