"""`check_hypergradient`: a method against central differences."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import UnitInterval
from .dynamics import Dynamics
from .method import Meter, Method, check_method
from .outer import Outer, OuterLosses
from .reverse import Reverse
from .training import Training
from .tree import Tree, shown

__all__ = ["Check", "CheckRow", "check_hypergradient"]


@dataclass(frozen=True)
class CheckRow:
    """One derivative, twice.

    Args:
        name: of the entry, as hyper['optimizer']['lr'][3]; or of the leaf and a random direction.
        hypergradient: the method's.
        difference: the central difference.
        uncertainty: how far two central differences, of a step and of twice the step, are apart; where it is not small
            the outer loss has a kink there, or the numbers are too coarse to tell.
        error: of the former two, relative to the larger; 0 where the rounding of the outer loss explains it.
    """

    name: str
    hypergradient: float
    difference: float
    uncertainty: float
    error: float


@dataclass(frozen=True)
class Check:
    """What `check_hypergradient` found; printed it is a table."""

    rows: tuple[CheckRow, ...]

    @property
    def worst(self) -> float:
        """The largest relative error; infinite where something is not finite."""
        return max((row.error for row in self.rows), default=0.0)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        head = f"{'':{width}}  hypergradient  central difference  uncertainty  relative error"
        lines = [
            f"{r.name:{width}}  {r.hypergradient:13.6g}  {r.difference:18.6g}  {r.uncertainty:11.1e}  {r.error:14.1e}"
            for r in self.rows
        ]
        return "\n".join([head, *lines])


@torch.inference_mode(False)
def check_hypergradient(
    training: Training,
    outer_loss: OuterLosses,
    params: Tree,
    hyper: Tree,
    method: Method | None = None,
    *,
    entries: int = 8,
    directions: int = 3,
    seed: int = 0,
) -> Check:
    r"""Compare a method with central differences of the outer loss, for your own losses and rules.

    .. math::
        \frac{dE}{dx} \approx \frac{8 (E(x + h) - E(x - h)) - (E(x + 2h) - E(x - 2h))}{12 h}

    which is off by O(h⁴); four runs of the training for each row. Use 64-bit tensors: with 32 bits differences have three
    digits at best.

    Args:
        training, outer_loss, params, hyper: as in `hypergradient`; one training.
        method: what is checked. Default: `Reverse()`.
        entries: leaves of at most so many entries are checked entry by entry.
        directions: larger ones along so many random directions of length 1.
        seed: of the directions.

    Returns:
        a `Check`: rows for `hyper`, and for `params` where the method gives their gradient and outer_loss is no dict.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: h["l2"] * (p["w"] ** 2).sum(), gdtuo.Adam(lr=0.1), steps=5)
        >>> hyper = {"l2": torch.tensor(0.5, dtype=torch.float64)}
        >>> start = {"w": torch.ones(2, dtype=torch.float64)}
        >>> check = gdtuo.check_hypergradient(training, lambda p, h: (p["w"] ** 2).sum() + h["l2"], start, hyper)
        >>> [row.name for row in check.rows], check.worst < 1e-6
        (["hyper['l2']", "params['w'][0]", "params['w'][1]"], True)
    """
    method = Reverse() if method is None else method
    check_method(method)
    dynamics = Dynamics(training, params, hyper, method.products)
    outer = Outer(outer_loss, dynamics.leaf_paths)
    outer.try_out(dynamics)
    derivative = method.differentiate(dynamics, outer, Meter(None, dynamics, 0, 0))
    for note in derivative.notes:
        warnings.warn(note, RuntimeWarning, stacklevel=3)
    eps = max(torch.finfo(x.dtype).eps for x in (*dynamics.weights, *dynamics.leaves))  # the coarsest decides
    make = torch.Generator("cpu").manual_seed(seed)
    rows: list[CheckRow] = []
    slopes = outer.chosen(derivative.by_leaves)
    for i, (path, slope) in enumerate(zip(dynamics.leaf_paths, slopes, strict=True)):
        leaf = dynamics.leaves[i]

        def at(value: Tensor, i: int = i) -> float:
            return outer_value(dynamics, outer, outer.loss_of(i), leaves=replaced(dynamics.leaves, i, value))

        probes = list(probed(leaf, slope, shown(path, "hyper"), entries, directions, make))
        rows += compared(at, leaf, probes, reach(dynamics, i), eps)
    if derivative.by_weights is not None and outer.keys is None:
        for i, (path, slope) in enumerate(zip(dynamics.weight_paths, derivative.by_weights[0], strict=True)):
            weight = dynamics.weights[i]

            def at(value: Tensor, i: int = i) -> float:
                return outer_value(dynamics, outer, 0, weights=replaced(dynamics.weights, i, value))

            probes = list(probed(weight, slope, shown(path, "params"), entries, directions, make))
            rows += compared(at, weight, probes, scale_of(weight), eps)
    return Check(tuple(rows))


@dataclass(frozen=True)
class Probe:
    """A direction, and the derivative along it."""

    name: str
    direction: Tensor
    slope: float


def probed(leaf: Tensor, slope: Tensor, name: str, entries: int, directions: int, make: torch.Generator) -> Iterator[Probe]:
    """Every entry of a small leaf, some directions of a large one."""
    if leaf.ndim == 0:
        yield Probe(name, torch.ones_like(leaf), float(slope))
    elif leaf.numel() <= entries:
        for k in range(leaf.numel()):
            index = tuple(int(j) for j in torch.unravel_index(torch.tensor(k), leaf.shape))
            unit = torch.zeros_like(leaf)
            unit[index] = 1.0
            yield Probe(name + "".join(f"[{j}]" for j in index), unit, float(slope[index]))
    else:
        for k in range(directions):
            direction = torch.randn(leaf.shape, generator=make, dtype=torch.float64, device="cpu").to(leaf)
            direction = direction / direction.norm()
            yield Probe(f"{name}, direction {k + 1}", direction, float((slope * direction).sum()))


def compared(at: Callable[[Tensor], float], leaf: Tensor, probes: Sequence[Probe], scale: float, eps: float) -> list[CheckRow]:
    """Central differences beside the slopes."""
    step = eps**0.25 * scale
    found = []
    for probe in probes:
        h = step / float(probe.direction.abs().max())
        near, far = ((at(leaf + k * h * probe.direction) - at(leaf - k * h * probe.direction)) / (2 * k * h) for k in (1, 2))
        found.append((probe, (4 * near - far) / 3, abs(near - far)))
    # Below this a difference is rounding of the outer loss.
    noise = 100 * eps * abs(at(leaf)) / step

    def error(a: float, b: float) -> float:
        gap = abs(a - b)
        if gap <= noise:
            return 0.0
        return gap / max(abs(a), abs(b)) if gap < float("inf") else float("inf")

    return [CheckRow(p.name, p.slope, d, u, error(p.slope, d)) for p, d, u in found]


def scale_of(leaf: Tensor) -> float:
    """By how much a leaf may reasonably be moved; 1 for one that is all 0."""
    return float(leaf.abs().max()) or 1.0 if leaf.numel() else 1.0


def reach(dynamics: Dynamics, leaf: int) -> float:
    """The same for a hyperparameter: those of an interval stay inside."""
    value = dynamics.leaves[leaf]
    if isinstance(dynamics.numbers.domain(leaf), UnitInterval):
        inside = torch.minimum(value, 1 - value)
        return float(inside[inside > 0].min()) if bool((inside > 0).any()) else 1.0
    return scale_of(value)


def replaced(tensors: Sequence[Tensor], i: int, value: Tensor) -> list[Tensor]:
    """The list with another tensor at a place."""
    return [*tensors[:i], value, *tensors[i + 1 :]]


def outer_value(
    dynamics: Dynamics, outer: Outer, loss: int, weights: list[Tensor] | None = None, leaves: list[Tensor] | None = None
) -> float:
    """An outer loss after the run, from other weights or with other hyperparameters."""
    run = copy.copy(dynamics)
    run.weights = dynamics.weights if weights is None else weights
    run.leaves = dynamics.leaves if leaves is None else leaves
    state = run.run()
    with torch.no_grad():
        return float(outer.value(run, state[: len(run.weights)], run.leaves)[loss])
