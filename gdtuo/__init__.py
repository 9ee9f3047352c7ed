"""Gradient descent for the numbers of gradient descent, as high as you like."""

from . import compat
from .auto import auto
from .domains import Domain, Positive, Real, UnitInterval
from .export import export
from .history import History
from .hypergrad import (
    Check,
    Checkpointed,
    Forward,
    Implicit,
    Plan,
    Record,
    Result,
    Reverse,
    Reversible,
    Training,
    Truncated,
    check_hypergradient,
    hypergradient,
    make_functional,
    plan,
    project_box,
    project_budget,
    project_simplex,
    realtime,
    train,
)
from .level import Learning, Level
from .observing import hyperparameters
from .optimizers import SGD, Adafactor, AdaGrad, Adam, AdamW, AveragingSGD, Lion, Muon, NAdam, RAdam, RMSProp
from .replay import replay
from .rules import MomentumForm, Rule, safe_divide, safe_sqrt
from .text import tower

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AdaGrad",
    "Adafactor",
    "Adam",
    "AdamW",
    "AveragingSGD",
    "Check",
    "Checkpointed",
    "Domain",
    "Forward",
    "History",
    "Implicit",
    "Learning",
    "Level",
    "Lion",
    "MomentumForm",
    "Muon",
    "NAdam",
    "Plan",
    "Positive",
    "RAdam",
    "RMSProp",
    "Real",
    "Record",
    "Result",
    "Reverse",
    "Reversible",
    "Rule",
    "Training",
    "Truncated",
    "UnitInterval",
    "auto",
    "check_hypergradient",
    "compat",
    "export",
    "hypergradient",
    "hyperparameters",
    "make_functional",
    "plan",
    "project_box",
    "project_budget",
    "project_simplex",
    "realtime",
    "replay",
    "safe_divide",
    "safe_sqrt",
    "tower",
    "train",
]
