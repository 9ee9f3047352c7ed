"""`plan`: what each method would cost, before anything runs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from .checkpointed import Checkpointed
from .dynamics import Cost, Dynamics
from .forward import Forward
from .implicit import Implicit
from .live_bytes import LiveBytes
from .method import Method
from .remainders import BLOCK, Remainders
from .reverse import Reverse
from .reversible import Reversible
from .tangents import Tangents
from .training import Training
from .tree import Tree
from .truncated import Truncated

__all__ = ["Plan", "PlanRow", "plan"]

PRODUCT = 2.0  # a product's work in gradients: benchmarks/curvature.py found 1.7 to 2.5
INTEGERS = 1.6  # what integer arithmetic makes of a run's work: benchmarks/whole_training.py found 1.6 to 2.2


@dataclass(frozen=True)
class PlanRow:
    """One method's forecast.

    Args:
        method: it.
        gradients, products: evaluations, as in `Cost`; for Implicit at most so many.
        memory: bytes at the peak: states that are kept, and what one step needs for itself.
        exact: whether it gives the derivative of the run itself.
        note: why it cannot be used, or is not; else "".
    """

    method: Method
    gradients: int
    products: int
    memory: int
    exact: bool
    note: str = ""

    @property
    def work(self) -> float:
        """Its time in evaluations of the inner gradient, roughly."""
        work = self.gradients + PRODUCT * self.products
        return INTEGERS * work if isinstance(self.method, Reversible) else work


@dataclass(frozen=True)
class Plan:
    """What `plan` found; printed it is a table.

    Args:
        rows: one for each method.
        best: the exact method with the least work that fits the memory; where none does, the one that takes least.
        fits: whether it fits.
    """

    rows: tuple[PlanRow, ...]
    best: Method
    fits: bool

    def __str__(self) -> str:
        names = [repr(row.method) for row in self.rows]
        width = max(map(len, names))
        lines = [f"{'':{width}}  gradients  products     memory  work"]
        least = min(row.work for row in self.rows if row.exact)
        for name, row in zip(names, self.rows, strict=True):
            best = "  <- best" if self.fits else "  <- the least, and more than there is"
            mark = best if row.method is self.best else f"  {row.note}" if row.note else ""
            lines.append(
                f"{name:{width}}  {row.gradients:9,}  {row.products:8,}  {sized(row.memory):>9}  {row.work / least:4.1f}{mark}"
            )
        return "\n".join(lines)


@torch.inference_mode(False)
def plan(training: Training, params: Tree, hyper: Tree, *, memory: int | None = None) -> Plan:
    """Forecast memory and work of every method for a run, and pick one; nothing is trained.

    States are counted; what one step needs for itself (the graph of the loss) is found by tracing one step without
    computing it. The outer loss's own memory is not included.

    Args:
        training, params, hyper: as in `hypergradient`; one training and one outer loss.
        memory: bytes that may be used. Default: half of what is free on the weights' device.

    Returns:
        a `Plan`.

    Raises:
        TypeError, ValueError: if the arguments do not fit each other.

    Example:
        >>> import torch, gdtuo
        >>> training = gdtuo.Training(lambda p, h, batch: (p["w"] ** 2).sum(), gdtuo.SGD(lr=0.1, momentum=0.9), steps=1000)
        >>> hyper = {"optimizer": {"lr": torch.full((1000,), 0.1)}}
        >>> gdtuo.plan(training, {"w": torch.ones(10**6)}, hyper, memory=120 * 10**6).best
        Reversible()
    """
    dynamics = Dynamics(training, params, hyper)
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, (int, float)) or not memory > 0):
        raise ValueError(f"plan got memory={memory!r}. Give a number of bytes, as 4 * 2**30.")
    memory = free_memory(dynamics.device) // 2 if memory is None else int(memory)
    pull, graph = workspace(dynamics, pull_once)
    rows = [forecast(dynamics, method, pull, graph) for method in candidates(dynamics, memory - pull - leaf_bytes(dynamics))]
    exact = [row for row in rows if row.exact and not row.note]
    fitting = [row for row in exact if row.memory <= memory]
    best = min(fitting, key=lambda row: row.work) if fitting else min(exact, key=lambda row: row.memory)
    return Plan(tuple(rows), best.method, bool(fitting))


def candidates(dynamics: Dynamics, room: int) -> list[Method]:
    """What there is to choose from."""
    least = 3 * dynamics.state_bytes
    return [
        Reverse(),
        Checkpointed(),
        Checkpointed(arity=2),
        *([Checkpointed(memory=room)] if room >= least else []),
        Reversible(),
        Forward(),
        Truncated(max(1, dynamics.steps // 10)),
        Implicit(),
    ]


def forecast(dynamics: Dynamics, method: Method, pull: int, graph: int) -> PlanRow:
    """A method's row; `pull` is the memory of one step pulled back, `graph` that of the inner gradient's graph alone."""
    try:
        cost = method.forecast(dynamics)
    except ValueError as error:
        return PlanRow(method, 0, 0, 0, False, f"cannot: {error}")
    state, step = dynamics.state_bytes, float(pull)
    if isinstance(method, Forward):
        if not dynamics.leaves:
            return PlanRow(
                method, cost.gradients, 0, 0, False, "cannot: hyper is empty, and initial weights are no hyperparameters"
            )
        try:
            step = traced(dynamics, lambda run: push_once(run, method.chunk))[0]
        except Exception as error:
            return PlanRow(method, 0, 0, 0, False, f"cannot: torch.func fails with {type(error).__name__}")
    elif isinstance(method, Reversible):  # the state in floating point; or, while the graph waits, the way to it
        largest = max(weight.numel() for weight in dynamics.weights)
        ended = 2 * sum(weight.numel() * weight.element_size() for weight in dynamics.weights)  # they, and the outer slopes
        step = ended + max(state + pull, graph + state + 8 * largest + bytes_to_undo(largest))
    kept = cost.states * state + leaf_bytes(dynamics)
    inexact = {Truncated: "inexact: the last steps only", Implicit: "exact at a minimum only; at most so many products"}
    note = inexact.get(type(method), "")
    return PlanRow(method, cost.gradients, cost.products, round(kept + step), not note, note)


def leaf_bytes(dynamics: Dynamics) -> int:
    """The direct terms and the sums that the hypergradient is added up in."""
    return 2 * sum(leaf.numel() * leaf.element_size() for leaf in dynamics.leaves)


# ---------------------------------------------------------------- what a step needs for itself


def workspace(dynamics: Dynamics, step: Callable[[Dynamics], Iterator[None]]) -> tuple[int, int]:
    """The bytes that a step takes besides what is given, at its peak and where it stops half-way.

    It is traced on tensors without memory, where that works.
    """
    try:
        return traced(dynamics, step)
    except Exception:  # a loss that looks at values, or leaves torch, cannot be traced: one step is computed
        return measured(step(copy.copy(dynamics)))


def traced(dynamics: Dynamics, step: Callable[[Dynamics], Iterator[None]]) -> tuple[int, int]:
    """The same, traced or not at all."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake: Callable[[Tensor], Tensor] = mode.from_tensor
        run = copy.copy(dynamics)
        run.weights, run.leaves = [fake(x) for x in dynamics.weights], [fake(x) for x in dynamics.leaves]
        return measured(step(run))


def measured(step: Iterator[None]) -> tuple[int, int]:
    """The bytes of what a step makes; before it begins it stops once."""
    next(step)
    with LiveBytes() as live:
        next(step)
        half = live.now
        for _ in step:
            pass
    return live.peak, half


def pull_once(run: Dynamics) -> Iterator[None]:
    """The first step, pulled back."""
    run.cost = Cost()
    state = run.start()
    adjoint = [torch.ones_like(x) for x in state]
    into = [torch.zeros_like(leaf) for leaf in run.leaves]
    yield
    gradient = run.linearize(state[: len(run.weights)], 0)
    yield
    run.pull(gradient, state, 0, [adjoint], [into])


def push_once(run: Dynamics, chunk: int | None) -> Iterator[None]:
    """The first step, pushed forward."""
    run.cost = Cost()
    tangents = Tangents(run, chunk)
    yield
    yield
    tangents.push(0, tangents.chunks[0])  # the others take the same memory after it


def bytes_to_undo(count: int) -> int:
    """What `Remainders.divide` of so many weights takes besides them."""
    block = min(count, BLOCK)
    n, d = (torch.tensor(x, device="cpu") for x in (9, 10))
    remainders = Remainders(torch.Size([block]), torch.device("cpu"))
    v = remainders.multiply(torch.arange(block, device="cpu"), n, d)
    with LiveBytes() as live:
        remainders.divide(v, n, d)
    return live.peak + 2 * 8 * (count - block)


# ---------------------------------------------------------------- what there is, and how it is shown


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses.

    Raises:
        ValueError: where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError) as error:
        raise ValueError("plan cannot see how much memory is free here. Give it: memory=4 * 2**30.") from error


def sized(count: int) -> str:
    """Bytes with a unit."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"
