"""A training run as a map from state to state, and that map pulled back and pushed forward by one step."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..rules import State
from .curvature import LINEARIZATIONS, Linearization, Products, gradient_of, pulled_back
from .numbers import OPTIMIZER, STATE, Numbers
from .training import Training
from .tree import Tree, flatten, shown, unflatten

__all__ = ["REPEATABLE", "Cost", "Dynamics", "RunState"]

REPEATABLE = (
    "Make `batches` a function of the step alone, draw random numbers from the global generators of torch, numpy or random "
    "inside `loss` or `batches` (their seed is part of the run), and use torch.use_deterministic_algorithms(True) on a GPU."
)
RunState: TypeAlias = list[Tensor]  # the weights, then each weight's optimizer state, all in one list


@dataclass
class Cost:
    """What a method does, in the units that grow with a run.

    Args:
        gradients: evaluations of the inner gradient.
        products: products of a vector with the second derivatives of the inner loss, each some two or three gradients'
            work.
        states: the largest number of states of the run (weights and optimizer state together) and of arrays of that
            size that are kept at a time from step to step.
    """

    gradients: int = 0
    products: int = 0
    states: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Of two runs, one after the other."""
        return Cost(self.gradients + other.gradients, self.products + other.products, max(self.states, other.states))


class Dynamics:
    """s_t = Φ_t(s_{t-1}, λ) of one training run.

    Args:
        training: the run.
        params: its initial weights.
        hyper: its hyperparameters λ.
        products: how second derivatives are taken.

    Raises:
        TypeError, ValueError: if they do not fit each other; before anything has run.
    """

    def __init__(self, training: Training, params: Tree, hyper: Tree, products: Products = "reverse-over-reverse") -> None:
        if not isinstance(training, Training):
            raise TypeError(
                f"training is a {type(training).__name__}. Give one gdtuo.Training; `hypergradient` alone takes several."
            )
        weights, leaves = flatten(params, "params"), flatten(hyper, "hyper")
        if not weights:
            raise ValueError("params is empty. Give the weights to train, as {'w': torch.zeros(3)}.")
        for weight in weights.values():
            training.optimizer.check_parameter(weight)
        self.training, self.products = training, products
        self.weight_paths, self.leaf_paths = list(weights), list(leaves)
        self.weights = [plain(weight) for weight in weights.values()]
        self.leaves = [plain(leaf) for leaf in leaves.values()]
        self.device = self.weights[0].device
        self.rule = training.optimizer.blueprints()[0].rule()
        self.numbers = Numbers(training.optimizer.blueprints()[0], weights, leaves, training.steps)
        self.check_leaves(self.leaves)
        self.cost = Cost()
        self._losses: dict[int, Tensor] = {}  # of the steps, when they were evaluated first
        self._stray = torch.zeros((), dtype=torch.float64, device="cpu")  # by how much later ones differed, relative
        with torch.no_grad():
            own = [self.rule.init(weight, self.numbers.names(i)) for i, weight in enumerate(self.weights)]
        self.state_names = [(i, name) for i, state in enumerate(own) for name in state]
        for state, (_, name) in zip(self._spread(own), self.state_names, strict=True):
            if not state[name].is_floating_point():
                raise TypeError(
                    f"{type(self.rule).__name__}.init returned {name!r} as {state[name].dtype}. Keep real numbers in the state; "
                    "`update` gets the step count as `step`."
                )
        self.given_states = self._places_of_states(
            [state[name] for state, (_, name) in zip(self._spread(own), self.state_names, strict=True)]
        )

    def _spread(self, states: Sequence[State]) -> list[State]:
        return [states[i] for i, _ in self.state_names]

    def _places_of_states(self, own: Sequence[Tensor]) -> dict[int, int]:
        """Place in the state -> the leaf that it starts from."""
        places = {(name, self.weight_paths[i]): place for place, (i, name) in enumerate(self.state_names)}
        given = {}
        for leaf, (name, path) in self.numbers.states.items():
            where = shown((OPTIMIZER, STATE, name, *path), "hyper")
            if (name, path) not in places:
                names = sorted({name for _, name in self.state_names})
                raise ValueError(
                    f"{where}: {type(self.training.optimizer).__name__} has no such state. It has {', '.join(names) or 'none'}."
                )
            place = places[name, path]
            if self.leaves[leaf].shape != own[place].shape:
                raise ValueError(
                    f"{where} has shape {list(self.leaves[leaf].shape)}. Give the state's, {list(own[place].shape)}: a state is "
                    "not a schedule."
                )
            given[len(self.weights) + place] = leaf
        return given

    def on_batch(self, batch: object) -> Dynamics:
        """The same run, every step of it on this batch; what it evaluates is counted here."""
        other = copy.copy(self)
        other.training = dataclasses.replace(self.training, batches=lambda step: batch)
        return other

    # ---------------------------------------------------------------- the state

    @property
    def steps(self) -> int:
        """T."""
        return self.training.steps

    @property
    def state_bytes(self) -> int:
        """The memory of one state of the run."""
        return max(1, sum(value.numel() * value.element_size() for value in self.start()))

    def initial(self, weights: Sequence[Tensor], leaves: Sequence[Tensor]) -> RunState:
        """s_0, a differentiable function of both."""
        states = [self.rule.init(weight, self.numbers.names(i)) for i, weight in enumerate(weights)]
        flat = [state[name] for state, (_, name) in zip(self._spread(states), self.state_names, strict=True)]
        start = [*weights, *flat]
        for place, leaf in self.given_states.items():
            start[place] = leaves[leaf].to(start[place]).clone()  # an optimizer may move the leaf later
        return start

    def start(self) -> RunState:
        """s_0, to run from."""
        with torch.no_grad():
            return self.initial(self.weights, self.leaves)

    def split(self, state: RunState) -> tuple[list[Tensor], list[State]]:
        """The weights, and the optimizer's state of each."""
        count = len(self.weights)
        states: list[State] = [{} for _ in range(count)]
        for (i, name), value in zip(self.state_names, state[count:], strict=True):
            states[i][name] = value
        return state[:count], states

    def params(self, weights: Sequence[Tensor]) -> dict[str, object]:
        """Weights, or what has their structure, as a tree."""
        return unflatten(self.weight_paths, weights)

    def hyper(self, leaves: Sequence[Tensor]) -> dict[str, object]:
        """Hyperparameters, or what has their structure, as a tree."""
        return unflatten(self.leaf_paths, leaves)

    # ---------------------------------------------------------------- one step, t = 0 ... T-1

    def loss(self, weights: Sequence[Tensor], leaves: Sequence[Tensor], t: int) -> Tensor:
        """The inner loss of a step."""
        return self.training.evaluate(self.params(weights), self.hyper(leaves), t, self.device)

    def witnessed(self, weights: Sequence[Tensor], leaves: Sequence[Tensor], t: int) -> Tensor:
        """The inner loss of a step that may be evaluated again, when it must be the same."""
        loss = self.loss(weights, leaves, t)
        if not loss.requires_grad:
            raise TypeError(
                "loss does not depend on params, so nothing would be trained. Compute it from `params`, without detach() or "
                "no_grad()."
            )
        value = loss.detach()
        if t not in self._losses:
            self._losses[t] = value
        else:
            gap = (value - self._losses[t]).abs() / self._losses[t].abs().clamp_min(torch.finfo(value.dtype).tiny)
            self._stray = torch.maximum(self._stray.to(value.device), gap.nan_to_num(0.0).to(torch.float64))
        return loss

    def check_repeated(self) -> None:
        """Raise if a step was another one when it was evaluated again."""
        stray = float(self._stray)
        if stray > torch.finfo(self.weights[0].dtype).eps ** 0.5:
            raise RuntimeError(
                f"A step's loss was not the same when it was evaluated again: it was {stray:.1e} of its size off. {REPEATABLE}"
            )

    def check_leaves(self, leaves: Sequence[Tensor]) -> None:
        """Raise ValueError unless the optimizer takes these hyperparameters."""
        self.numbers.check(leaves)
        for group in self.numbers.extremes(leaves):
            self.training.optimizer.check(group)

    def update(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], states: Sequence[State], rows: Mapping[int, Tensor], t: int
    ) -> RunState:
        """The state after a step, from the gradients at the state before it."""
        after_weights, after_states = [], []
        for i, (weight, gradient, state) in enumerate(zip(weights, gradients, states, strict=True)):
            delta, after = self.rule.update(weight, gradient, state, self.numbers.of(i, rows), t + 1)
            if after.keys() != state.keys():
                raise ValueError(
                    f"{type(self.rule).__name__}.update returned the states {sorted(after)}, its init {sorted(state)}. Return "
                    "the same names."
                )
            after_weights.append(weight + delta)
            after_states.append(after)
        flat = [state[name] for state, (_, name) in zip(self._spread(after_states), self.state_names, strict=True)]
        return [*after_weights, *flat]

    @torch.no_grad()
    def after(self, state: RunState, gradients: Sequence[Tensor], t: int) -> RunState:
        """Φ_t(state), where the inner gradient is at hand."""
        weights, states = self.split(state)
        return self.update(weights, gradients, states, self.numbers.rows(self.leaves, t), t)

    def gradient(self, weights: Sequence[Tensor], t: int) -> list[Tensor]:
        """The inner gradient of a step."""
        self.cost.gradients += 1
        wanted = [weight.detach().requires_grad_() for weight in weights]
        with torch.enable_grad():
            loss = self.witnessed(wanted, self.leaves, t)
        return gradient_of(loss, wanted)

    def advance(self, state: RunState, t: int) -> RunState:
        """Φ_t(state)."""
        return self.after(state, self.gradient(state[: len(self.weights)], t), t)

    def run(self, tick: Callable[[], object] = lambda: None) -> RunState:
        """s_T, with a call after each step."""
        state = self.start()
        for t in range(self.steps):
            state = self.advance(state, t)
            tick()
        return state

    def linearize(self, weights: Sequence[Tensor], t: int) -> Linearization:
        """The inner gradient of a step, with its products."""
        self.cost.gradients += 1
        return LINEARIZATIONS[self.products](lambda w, leaves: self.witnessed(w, leaves, t), weights, self.leaves)

    def pull(
        self, gradient: Linearization, state: RunState, t: int, adjoints: Sequence[RunState], into: Sequence[list[Tensor]]
    ) -> list[RunState]:
        """Φ_t pulled back at `state`: p_t -> p_{t-1} = p_t A_t for each p_t, with p_t B_t added to each of `into`.

        `gradient` is `linearize` at the weights of `state`.
        """
        count = len(self.weights)
        inputs = [value.detach().requires_grad_() for value in state]
        arrived = [value.detach().requires_grad_() for value in gradient.value]
        rows = {i: row.detach().requires_grad_() for i, row in self.numbers.rows(self.leaves, t).items()}
        with torch.enable_grad():
            weights, states = self.split(inputs)
            after = self.update(weights, arrived, states, rows, t)
        wanted = [*inputs, *arrived, *rows.values()]
        before = []
        for k, adjoint in enumerate(adjoints):
            slopes = pulled_back(after, wanted, adjoint, keep=k + 1 < len(adjoints))
            through = [filled(slope, x) for slope, x in zip(slopes[len(inputs) :], arrived, strict=False)]
            self.numbers.scatter(into[k], dict(zip(rows, slopes[len(inputs) + count :], strict=True)), t)
            self.cost.products += 1
            by_weights, by_leaves = gradient.product(through)
            for total, part in zip(into[k], by_leaves, strict=True):
                if part is not None:
                    total += part
            passed = [filled(slope, x) for slope, x in zip(slopes, inputs, strict=False)]
            before.append([p + h for p, h in zip(passed, by_weights, strict=False)] + passed[count:])
        return before

    def pull_initial(self, adjoints: Sequence[RunState], into: Sequence[list[Tensor]]) -> list[list[Tensor]]:
        """s_0 pulled back: the derivatives with respect to the initial weights, with those of the leaves added to `into`."""
        weights = [weight.detach().requires_grad_() for weight in self.weights]
        leaves = [leaf.detach().requires_grad_() for leaf in self.leaves]
        with torch.enable_grad():
            state = self.initial(weights, leaves)
        by_weights = []
        for k, adjoint in enumerate(adjoints):
            slopes = pulled_back(state, [*weights, *leaves], adjoint, keep=True)
            for total, part in zip(into[k], slopes[len(weights) :], strict=True):
                if part is not None:
                    total += part
            by_weights.append([filled(slope, w) for slope, w in zip(slopes, weights, strict=False)])
        return by_weights


def plain(tensor: Tensor) -> Tensor:
    """A tensor that neither autograd nor torch.func minds: no graph, memory of its own entries."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor.detach().contiguous()


def filled(slope: Tensor | None, like: Tensor) -> Tensor:
    """A derivative that is 0 where it is None."""
    return torch.zeros_like(like) if slope is None else slope
