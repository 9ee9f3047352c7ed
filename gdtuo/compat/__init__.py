"""The published package's names, on this package's engine.

A script for `gradient_descent_the_ultimate_optimizer` 1.0 (Chandra, Xie, Ragan-Kelley, Meijer, "Gradient Descent: The
Ultimate Optimizer", NeurIPS 2022) runs unchanged and with the same numbers once its import reads

    from gdtuo import compat as gdtuo

Every optimizer there is a template around a `gdtuo.Level` with `hypergradient="exact"`, everything learned, and the rules
and domains of the original. `parameters` are the raw numbers, as there.

Where it departs from the published package, on purpose:

- `loss.backward()` is enough; with `create_graph=True` the graph is dropped at `step()`, and nothing leaks.
- Parameters stay leaves and are updated in place: tied weights stay tied, parameters with `requires_grad=False` are not
  trained. (There, tied weights come apart and frozen ones are trained.)
- A hypergradient that is not finite leaves the hyperparameters where they are. (There, they become NaN.)
- Hyperparameters are kept in float64 where the device has it, whatever the default dtype.
- `parameters` is a read-only snapshot without gradients. (There, its tensors are the tower's own.)
- A tower trains one model; to train a second, construct a second tower. (There, moments and rates carry over by name.)
- Numbers that make NaN there (Adam's betas or RMSProp's gamma outside of [0, 1), RMSProp's alpha below 0) raise.
- `Optimizable` is not to be subclassed: write a `gdtuo.Rule`.
"""

from .optimizers import SGD, AdaGrad, Adam, AdamBaydin, NoOpOptimizer, Optimizable, RMSProp, RMSPropAlpha, SGDPerParam
from .wrapper import ModuleWrapper

__all__ = [
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamBaydin",
    "ModuleWrapper",
    "NoOpOptimizer",
    "Optimizable",
    "RMSProp",
    "RMSPropAlpha",
    "SGDPerParam",
]
