"""One algorithm a file: its rule and its public class."""

from .adafactor import Adafactor, AdafactorRule
from .adagrad import AdaGrad, AdaGradRule
from .adam import Adam, AdamRule, AdamW, AdamWRule
from .averaging import AveragingSGD, AveragingSGDRule
from .lion import Lion, LionRule
from .muon import Muon, MuonRule
from .nadam import NAdam, NAdamRule
from .radam import RAdam, RAdamRule
from .rmsprop import RMSProp, RMSPropRule
from .sgd import SGD, SGDRule

__all__ = [
    "SGD",
    "AdaGrad",
    "AdaGradRule",
    "Adafactor",
    "AdafactorRule",
    "Adam",
    "AdamRule",
    "AdamW",
    "AdamWRule",
    "AveragingSGD",
    "AveragingSGDRule",
    "Lion",
    "LionRule",
    "Muon",
    "MuonRule",
    "NAdam",
    "NAdamRule",
    "RAdam",
    "RAdamRule",
    "RMSProp",
    "RMSPropRule",
    "SGDRule",
]
