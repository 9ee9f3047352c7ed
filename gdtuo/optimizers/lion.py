"""Lion."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..domains import Positive, UnitInterval
from ..level import Learning, Level, Params
from ..rules import Hyper, Number, State
from .moments import check_betas
from .penalized import PenalizedRule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Lion", "LionRule"]


@dataclass(frozen=True)
class LionRule(PenalizedRule):
    """w ← w - η (sign(β1 m + (1-β1) g) + λ w);  m ← β2 m + (1-β2) g."""

    hyperparameters = {
        "lr": (1e-4, Positive()),
        "beta1": (0.9, UnitInterval()),
        "beta2": (0.99, UnitInterval()),
        "weight_decay": (0.0, Positive()),
    }
    optional = frozenset(("weight_decay",))
    direct = frozenset(("lr", "weight_decay"))
    flat = frozenset(("beta1", "beta2"))
    decoupled = True

    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        return {"exp_avg": torch.zeros_like(weights)}

    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        g, mean, beta1, beta2 = self.descent(weights, gradient, hyper), state["exp_avg"], hyper["beta1"], hyper["beta2"]
        delta = -hyper["lr"] * torch.sign(beta1 * mean + (1 - beta1) * g)
        return self.shrunk(weights, delta, hyper), {"exp_avg": beta2 * mean + (1 - beta2) * g}


class Lion(Level):
    r"""Lion, evolved sign momentum: every weight moves by the learning rate, up or down.

    .. math::
        w &\leftarrow w - \eta \left( \mathrm{sign}(\beta_1 m + (1 - \beta_1) g) + \lambda w \right) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Both use the m of before the step. Usual learning rates are 3 to 10 times below Adam's, weight decays as much above.

    Args:
        params: parameters, named parameters or parameter groups; without them the level is a template.
        lr: step size η >= 0, in units of weight. Default: 1e-4.
        betas: (β1, β2), each in [0, 1). Default: (0.9, 0.99).
        weight_decay: λ >= 0; each step shrinks the weights by the factor 1 - η λ. Default: 0.
        maximize: ascend instead of descend.
        fused: as in `SGD`.
        learning: the keywords of `Learning`: optimizer, learn, per, hypergradient, horizon, trust, domains.

    Learnable: lr, weight_decay. The betas are not: an update depends on them through a sign alone, whose derivative is 0
    wherever it has one, however many updates one looks at. Naming one in `learn` raises, "all" leaves them out. For the
    same reason a whole-training hypergradient is that of lr and weight_decay with every sign held fixed: what else an
    inner loss depends on, and the betas, get 0.

    Raises:
        ValueError: a number outside its range, or betas that are to be learned; before anything has changed.

    References:
        Chen, Liang, Huang, Real, Wang, et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, program 1.
        torch has no Lion; the `lion-pytorch` package has, and its state dicts move both ways. As in every optimizer
        here, a complex number counts as two real ones (there: z / |z|).

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = Lion([w], lr=0.25)
        >>> w.grad = torch.tensor([3.0, 0.001])
        >>> optimizer.step()
        >>> w.data
        tensor([ 0.7500, -1.2500])
    """

    rule = LionRule
    aliases = {"betas": ("beta1", "beta2")}

    def __init__(
        self,
        params: Params = None,
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        fused: bool | None = None,
        **learning: Unpack[Learning],
    ) -> None:
        numbers = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, **numbers, maximize=maximize, fused=fused, **learning)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """A beta of 1 would never take anything in."""
        check_betas(cls.__name__, group)
