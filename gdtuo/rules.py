"""`Rule`: what one update of an optimizer is, as a pure function. It knows neither torch.optim nor autograd."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .domains import Domain

__all__ = ["MomentumForm", "Rule", "safe_divide", "safe_sqrt", "silenced"]

Number: TypeAlias = float | Tensor
Hyper: TypeAlias = Mapping[str, Any]  # name -> Number; Any, since torch's stubs do not let a Number multiply a Number
State: TypeAlias = dict[str, Tensor]


class MomentumForm(NamedTuple):
    """An update as heavy-ball momentum: buffer ← decay · buffer + injection;  w ← w + rate · buffer (the new one)."""

    buffer: str  # the name of the only state
    decay: str  # the name of the hyperparameter that multiplies it
    injection: Tensor  # a function of weights, gradient and the other hyperparameters
    rate: Number


@dataclasses.dataclass(frozen=True)
class Rule(ABC):
    """One update of an optimizer: the interface that a new algorithm implements.

    A subclass declares its hyperparameters and writes `init` and `update`; hypergradients are derived from
    `update` by forward-mode differentiation. Switches such as `nesterov` are dataclass fields, hashable. To use a
    rule, name it in a `Level`.

    An elementwise rule is recorded on example tensors, once for all optimizers that use it with the same switches,
    and what was recorded is run: `init` and `update` depend on their arguments and the switches alone. A rule that
    branches on a number cannot be recorded, and is called for each parameter instead.

    Example:
        >>> import torch, gdtuo
        >>> class SignRule(gdtuo.Rule):
        ...     hyperparameters = {"lr": (1e-3, gdtuo.Positive()), "momentum": (0.9, gdtuo.UnitInterval())}
        ...     def init(self, weights, hyper):
        ...         return {"momentum_buffer": torch.zeros_like(weights)}
        ...     def update(self, weights, gradient, state, hyper, step):
        ...         mean = hyper["momentum"] * state["momentum_buffer"] + (1 - hyper["momentum"]) * gradient
        ...         return -hyper["lr"] * mean.tanh(), {"momentum_buffer": mean}
        >>> class Sign(gdtuo.Level):
        ...     rule = SignRule
        >>> weights = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = Sign([weights], lr=0.1, optimizer=gdtuo.SGD(), learn="all")
        >>> str(optimizer)
        'sign / sgd'

    Attributes:
        hyperparameters: name -> (default, domain), for every continuous number of the rule.
        optional: names of hyperparameters that drop out where the user's number is exactly 0 and is not
            learned: they are then absent from `hyper`, and a rule tests for that with `"momentum" in hyper`.
            It must never branch on a value.
        flat: names of hyperparameters that the update does not follow: it depends on them through a sign alone, so
            every derivative is 0. They cannot be learned.
        closed_form: whether `replay` is supplied. Without it derivatives come from `update`.
        divisors: hyperparameters by which `replay` divides to learn them; where such a one may become 0, as in a
            `Real` domain, derivatives come from `update` all the same.
        elementwise: whether each weight's update depends on that weight, its gradient and its state alone.
            Only elementwise rules may be flattened, learned per element, or stand above the first level.
        proportional: whether the gradient stands in the update at a learning rate of 1 as it is, as in SGD's: that grows as
            fast as the gradient, and `trust` has to know. Adam's does not.
        uniform: names of states that come from hyperparameters and the step alone, and so are the same for all weights
            of a parameter; `init` returns them in the weights' shape. One number is kept of them for each parameter,
            as torch keeps NAdam's product of momenta, except where hyperparameters are learned per element.
    """

    hyperparameters: ClassVar[Mapping[str, tuple[float, Domain]]] = {}
    optional: ClassVar[frozenset[str]] = frozenset()
    flat: ClassVar[frozenset[str]] = frozenset()
    uniform: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = True
    proportional: ClassVar[bool] = False
    closed_form: ClassVar[bool] = False
    divisors: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def switches(cls) -> dict[str, Any]:
        """The rule's discrete options and their defaults."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @property
    def direct(self) -> frozenset[str]:
        """Names of hyperparameters that multiply the update, or a part of it, as it stands.

        The derivative with respect to any other may be what rounding leaves of an identical zero (Adam's betas at the
        first step), and its cosine is 0 where it is below √eps times the update; that of a direct one never is.
        """
        return frozenset()

    @abstractmethod
    def init(self, weights: Tensor, hyper: Collection[str]) -> State:
        """The state before the first update: name -> tensor, of `weights`' shape if the rule is elementwise.

        `hyper` holds the names of the hyperparameters that are present.
        """

    @abstractmethod
    def update(self, weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number) -> tuple[Tensor, State]:
        """One update: (what is added to the weights, the new state). Pure: no argument is changed.

        `step` counts from 1; it is a 0-d tensor where the rule is recorded, else a number. Each hyperparameter is a tensor
        that broadcasts against `weights`.
        Wherever a square root or a quotient can meet 0, use `safe_sqrt` and `safe_divide`, whose derivatives
        are finite there.
        """

    def native(
        self, weights: list[Tensor], gradients: list[Tensor], state: Mapping[str, list[Tensor]], hyper: Hyper, steps: list[Tensor]
    ) -> bool:
        """The same update of a list of tensors in place, by one kernel of torch; or False, and nothing is changed.

        `hyper` are numbers; on a CUDA device "lr" may be a tensor. `steps` are 0-d tensors on the CPU that count this update
        already.
        """
        return False

    def reads_weights(self, hyper: Collection[str]) -> bool:
        """Whether `update` looks at `weights`; if not it may be handed an empty tensor."""
        return True

    def remembers(self, learned: Collection[str], hyper: Collection[str]) -> frozenset[str]:
        """Which of "gradient" and "weights" `replay` needs of the last update, besides the state after it."""
        return frozenset(("gradient", "weights"))

    def momentum_form(self, weights: Tensor, gradient: Tensor, hyper: Hyper, step: Number) -> MomentumForm | None:
        """The same update in a form that can be undone exactly, for `gdtuo.Reversible`; None where there is none."""
        return None

    def replay(
        self, learned: tuple[str, ...], weights: Tensor, gradient: Tensor, state: State, hyper: Hyper, step: Number
    ) -> tuple[Tensor, list[Tensor]]:
        """The closed form of a rule with `closed_form = True`: the update that led to `state`, once more.

        `state` is the state *after* the update; the other arguments are the update's own, and those that
        `remembers` does not name may be empty tensors.

        Returns:
            what was added to the weights, and its derivative with respect to each learned hyperparameter.
        """
        raise TypeError(f"{type(self).__name__} has no closed form; its derivatives come from `update`.")


def safe_sqrt(x: Tensor) -> Tensor:
    """√x for x >= 0, with derivative 0 (not infinity) at 0.

    Numbers below the dtype's smallest normal number, negative rounding noise included, count as that number.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> safe_sqrt(x).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.2500])
    """
    return x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def silenced(direction: Tensor, mean: Tensor, square: Tensor) -> Tensor:
    """`direction`, a quotient of a mean and the root of a mean square; a constant 0 where both have never been anything else.

    A unit that has been dead from the start has the direction 0 / (0 + ε), whose derivative is 1 / ε: differentiated
    through many steps that overflows, though nothing depends on it. One update alone, as in a tower, is differentiated
    without autograd's graph and does not need it.
    """
    if not torch.is_grad_enabled():
        return direction
    return direction * ((mean != 0) | (square != 0))


def safe_divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0.

    Example:
        >>> import torch
        >>> safe_divide(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor([0.0000, 0.5000])
    """
    zero = b == 0
    return torch.where(zero, 0.0, a / torch.where(zero, 1.0, b))
