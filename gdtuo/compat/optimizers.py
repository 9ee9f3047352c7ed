"""The published package's optimizers: its names and constructors around templates of this package's levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..level import Level
from .rules import AdaGradLevel, AdamLevel, RMSPropLevel, SGDLevel

__all__ = ["SGD", "AdaGrad", "Adam", "AdamBaydin", "NoOpOptimizer", "Optimizable", "RMSProp", "RMSPropAlpha", "SGDPerParam"]


class Optimizable:
    """What the published package calls an optimizer, or a module to be optimized. Not to be subclassed.

    Raises:
        TypeError: on subclassing. An update rule of your own is a `gdtuo.Rule`, about fifteen lines whose
            hypergradients are derived; the README shows one under "A rule of your own".
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__module__.startswith(__package__):
            raise TypeError(
                f"{cls.__name__} subclasses {cls.__mro__[1].__name__} of gdtuo.compat, which carries the published optimizers "
                "alone. Write a gdtuo.Rule and a gdtuo.Level instead: see 'A rule of your own' in the README."
            )

    def initialize(self) -> None:
        """Nothing is left to do: all state exists when it is first needed."""

    def begin(self) -> None:
        """Nothing is left to do: a tower keeps no autograd graph from step to step."""

    def zero_grad(self) -> None:
        """Nothing is left to do: hypergradients do not accumulate."""


class NoOpOptimizer(Optimizable):
    """Ends a tower: what stands below is not learned."""

    def step(self, params: Mapping[str, Tensor]) -> None:
        """Leave `params` alone."""

    def __str__(self) -> str:
        return ""


NOTHING = NoOpOptimizer()


class Raw(dict):
    """Name -> raw tensor, as they are now. Read-only."""

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError(
            f"parameters[{name!r}] is a snapshot of what is learned. To set a number by hand, use a gdtuo level and write into "
            'its groups: optimizer.param_groups[0]["lr"] = 0.1.'
        )

    def __reduce__(self) -> tuple:
        return dict, (dict(self),)


class Tower(Optimizable):
    """One level of a published tower: its numbers and what stands above it. The first `step` binds it to parameters.

    Attributes:
        optimizer: the level above.
    """

    _title: ClassVar[str]
    _level: ClassVar[type[Level]]

    def __init__(self, numbers: Mapping[str, float], optimizer: Optimizable, fixed: Sequence[str] = (), **switches: Any) -> None:
        if not isinstance(optimizer, (Tower, NoOpOptimizer)):
            raise TypeError(
                f"compat.{type(self).__name__} got optimizer={optimizer!r}. Give one of the published optimizers, as "
                "compat.SGD(1e-5), or build the whole tower of gdtuo's own levels."
            )
        self.optimizer = optimizer
        self._numbers = {name: float(number) for name, number in numbers.items()}
        self._arguments: dict[str, Any] = {**self._numbers, **switches}
        self._level(**self._arguments)  # refuses bad numbers here and now
        rule = self._level.rule
        domains = {name: domain for name, (_, domain) in rule.hyperparameters.items() if name not in fixed}
        self._raw = {name: domain.raw(_double(self._numbers[name])) for name, domain in domains.items()}
        self._movable = [
            name
            for name, domain in domains.items()
            if domain.learnable(self._numbers[name]) and (self._numbers[name] != 0 or name not in rule.optional)
        ]
        self._learned: list[str] = []  # keys of `parameters`, in the order of the shifts
        self._place: tuple[Level, int] | None = None  # the bound tower, and at which height of it this level stands
        self._params: dict[str, Tensor] = {}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The raw hyperparameters as they are now: name -> 0-d tensor of the default dtype.

        Example:
            >>> {name: round(raw.item(), 4) for name, raw in Adam().parameters.items()}
            {'alpha': 0.001, 'beta1': 1.0986, 'beta2': 3.4534}
        """
        raw = dict(self._raw)
        if self._place is not None and self._learned:
            tower, height = self._place
            shift = tower.param_groups[0][f"L{height}/shift"].detach().flatten()
            moved = zip(self._learned, shift, strict=True)
            raw |= {name: self._at(raw[name].to(by), by) for name, by in moved if name in raw}
        return Raw({name: value.to(torch.get_default_dtype()) for name, value in raw.items()})

    def step(self, params: Mapping[str, Tensor]) -> None:
        """Update `params` (name -> leaf tensor) in place, and every level above. The first call binds the tower to them.

        Raises:
            ValueError: if a later call brings other tensors, or a level of the tower trains others already.
        """
        if self._place is None:
            build(self, params)
            self._params = dict(params)
        if params.keys() != self._params.keys() or any(p is not self._params[name] for name, p in params.items()):
            raise ValueError(
                f"The tower '{self}' trains other parameters already. Construct a new one for each model; tensors are updated in "
                "place and stay the same."
            )
        for p in params.values():
            if p.grad is not None and p.grad.grad_fn is not None:
                p.grad = p.grad.detach()  # the graph that create_graph=True left would keep itself alive
        assert self._place is not None
        self._place[0].step()

    def __str__(self) -> str:
        return f"{self._title} / {self.optimizer}"

    def _at(self, start: Tensor, shift: Tensor) -> Tensor:
        """A raw number that started at `start`."""
        return start + shift

    def _reaches(self, name: str) -> bool:
        """Whether this level moves what is called `name` below it."""
        return True

    def _plan(self, moved: Sequence[str], above: Tower | None, bottom: bool) -> tuple[dict[str, Any], Tensor | None]:
        """Settle what is learned, given the names that this level moves; returns the level's keywords and initial shifts."""
        self._learned = [name for name in self._movable if above is not None and above._reaches(name)]
        return {**self._arguments, **({"learn": self._learned} if self._learned else {})}, None


def build(bottom: Tower, params: Mapping[str, Tensor]) -> None:
    """Bind a published tower: one `Level` for each of its levels, over the parameters that it reaches."""
    chain: list[Tower] = []
    level: Optimizable = bottom
    while isinstance(level, Tower):
        chain.append(level)
        level = level.optimizer
    if any(level._place is not None for level in chain):
        raise ValueError(f"A level of the tower '{bottom}' belongs to another one already. Construct a new one for each model.")
    moved = [name for name in params if bottom._reaches(name)]
    group: dict[str, Any] = {"params": [params[name] for name in moved]}
    keywords = []
    for k, level in enumerate(chain):
        arguments, start = level._plan(moved, chain[k + 1] if k + 1 < len(chain) else None, bottom=k == 0)
        keywords.append({**arguments, "hypergradient": "exact"})
        if start is not None:
            group[f"L{k}/shift"] = start
        moved = level._learned
        if not moved:  # nothing is left for the levels above to do
            break
    # A level with shifts needs one above it: on top, one that moves nothing.
    tower: Level | None = SGDLevel(alpha=0.0) if moved else None
    for k in reversed(range(len(keywords))):
        above = {} if tower is None else {"optimizer": tower}
        tower = chain[k]._level([group] if k == 0 else None, **keywords[k], **above)
    for k, level in enumerate(chain):
        level._place = (tower, k) if tower is not None else None


class SGD(Tower):
    """w ← w - α b, b ← μ b + g: stochastic gradient descent, α and μ learned as they are.

    Args:
        alpha: initial step size α, any number. Default: 0.01.
        mu: initial momentum μ. 0 means no momentum, and none is learned. Default: 0.
        optimizer: the level above. Default: none.

    Example:
        >>> str(SGD(0.01, optimizer=SGD(1e-5)))
        'sgd / sgd / '
    """

    _title, _level = "sgd", SGDLevel

    def __init__(self, alpha: float = 0.01, mu: float = 0.0, optimizer: Optimizable = NOTHING) -> None:
        super().__init__({"alpha": alpha, "mu": mu}, optimizer)


class SGDPerParam(Tower):
    """w_i ← w_i - α_i g_i: SGD with a step size for each tensor, or above another level for each hyperparameter.

    Args:
        params: pairs (name, α_i). What is not named is left alone.
        optimizer: the level above; it sees all α_i as its parameters. Default: none.

    Example:
        >>> list(SGDPerParam([("weight", 0.1), ("bias", 0.01)]).parameters)
        ['weight_alpha', 'bias_alpha']
    """

    _title, _level = "sgdPerParam", SGDLevel

    def __init__(self, params: Iterable[tuple[str, float]], optimizer: Optimizable = NOTHING) -> None:
        self._rates = {name: float(rate) for name, rate in params}
        for rate in self._rates.values():
            SGDLevel(alpha=rate)  # refuses bad numbers
        super().__init__({"alpha": 0.0, "mu": 0.0}, optimizer)
        self._raw = {f"{name}_alpha": _double(rate) for name, rate in self._rates.items()}

    def _at(self, start: Tensor, shift: Tensor) -> Tensor:
        return shift  # which started at `start`: see `_plan`

    def _reaches(self, name: str) -> bool:
        return name in self._rates

    def _plan(self, moved: Sequence[str], above: Tower | None, bottom: bool) -> tuple[dict[str, Any], Tensor | None]:
        # The rates are shifts of 0, since a group has one written number alone.
        self._learned = [f"{name}_alpha" for name in moved]
        left_out = [] if above is None else [name for name in self._learned if not above._reaches(name)]
        if left_out and isinstance(above, SGDPerParam) and isinstance(above.optimizer, Tower):
            # a rate that is not named would start at 0 but be learned with the others
            raise ValueError(f"A level above learns the rates of {above}, which does not name all. Name all of them: {left_out}.")
        start = torch.tensor([[self._rates.get(name, 0.0)] for name in moved], dtype=torch.float64)
        return {**self._arguments, "learn": "alpha", "per": "tensor" if bottom else "element"}, start


class AdaGrad(Tower):
    """G ← G + g² (from 0.1), w ← w - α g / √(G + 1e-10); α learned as it is.

    Args:
        alpha: initial step size α. Default: 0.01.
        optimizer: the level above. Default: none.
    """

    _title, _level = "adagrad", AdaGradLevel

    def __init__(self, alpha: float = 0.01, optimizer: Optimizable = NOTHING) -> None:
        super().__init__({"alpha": alpha}, optimizer)


def _clamp(x: Tensor) -> Tensor:
    """From a raw number to one in (0, 1)."""
    return (x.tanh() + 1.0) / 2.0


def _unclamp(y: Tensor) -> Tensor:
    """The inverse of `clamp`."""
    z = y * 2.0 - 1.0
    return ((1.0 + z) / (1.0 - z)).log() / 2.0


class RMSProp(Tower):
    """s ← γ s + (1-γ) g², w ← w - α g / √(s + 1e-8); learned are √α and atanh(2γ - 1).

    Args:
        alpha: initial step size α >= 0. Default: 0.01.
        gamma: initial smoothing γ in [0, 1). Default: 0.99.
        optimizer: the level above. Default: none.
    """

    _title, _level = "rmsprop", RMSPropLevel
    clamp, unclamp = staticmethod(_clamp), staticmethod(_unclamp)

    def __init__(self, alpha: float = 0.01, gamma: float = 0.99, optimizer: Optimizable = NOTHING) -> None:
        super().__init__({"alpha": alpha, "gamma": gamma}, optimizer)


class RMSPropAlpha(Tower):
    """`RMSProp` whose α alone is learned. Arguments as there."""

    _title, _level = "rmspropAlpha", RMSPropLevel

    def __init__(self, alpha: float = 0.01, gamma: float = 0.99, optimizer: Optimizable = NOTHING) -> None:
        super().__init__({"alpha": alpha, "gamma": gamma}, optimizer, fixed=("gamma",))


class Adam(Tower):
    """m ← β1 m + (1-β1) g, v ← β2 v + (1-β2) g² (from ε), w ← w - α m̂ / (√v̂ + ε); α and atanh(2β - 1) learned.

    Args:
        alpha: initial step size α. Default: 0.001.
        beta1, beta2: initial β1 and β2 in [0, 1). Default: 0.9 and 0.999.
        log_eps: log10 of ε. Default: -8.
        optimizer: the level above. Default: none.
    """

    _title, _level = "adam", AdamLevel
    clamp, unclamp = staticmethod(_clamp), staticmethod(_unclamp)

    def __init__(
        self,
        alpha: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        log_eps: float = -8.0,
        optimizer: Optimizable = NOTHING,
    ) -> None:
        super().__init__({"alpha": alpha, "beta1": beta1, "beta2": beta2}, optimizer, eps=10.0**log_eps)


class AdamBaydin(Tower):
    """`Adam` whose α alone is learned. Arguments as there."""

    _title, _level = "adamBaydin", AdamLevel

    def __init__(
        self,
        alpha: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        log_eps: float = -8.0,
        optimizer: Optimizable = NOTHING,
    ) -> None:
        numbers = {"alpha": alpha, "beta1": beta1, "beta2": beta2}
        super().__init__(numbers, optimizer, fixed=("beta1", "beta2"), eps=10.0**log_eps)


def _double(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)
