"""A whole training run differentiated: one description of a run, one function, the method an argument."""

from .check import Check, check_hypergradient
from .checkpointed import Checkpointed
from .dynamics import Cost, Dynamics
from .forward import Forward
from .hypergradient import hypergradient
from .implicit import Implicit
from .method import Method
from .modules import make_functional
from .plan import Plan, plan
from .projections import project_box, project_budget, project_simplex
from .realtime import Record, realtime
from .result import Result
from .reverse import Reverse
from .reversible import Reversible
from .train import train
from .training import Training
from .truncated import Truncated

__all__ = [
    "Check",
    "Checkpointed",
    "Cost",
    "Dynamics",
    "Forward",
    "Implicit",
    "Method",
    "Plan",
    "Record",
    "Result",
    "Reverse",
    "Reversible",
    "Training",
    "Truncated",
    "check_hypergradient",
    "hypergradient",
    "make_functional",
    "plan",
    "project_box",
    "project_budget",
    "project_simplex",
    "realtime",
    "train",
]
