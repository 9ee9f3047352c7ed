"""Forward mode: the derivatives of the state with respect to every hyperparameter, carried along with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

from .dynamics import Dynamics, RunState
from .outer import Slopes

__all__ = ["Tangents", "check_chunk"]

WORKING_BYTES = 2**26  # of tangents that are pushed forward together, unless the user says otherwise
STATE_ONCE: Any = (None, 0)  # the state is the same along all tangents; torch's annotations do not know None


class Tangents:
    """s_t and Z_t = ds_t/dλ, with Z_t = A_t Z_{t-1} + B_t.

    H is the number of hyperparameters, every entry of every leaf counted.

    Args:
        dynamics: the run, at its start.
        chunk: how many of the H tangents are pushed forward together; None for as many as take 64 MiB.
    """

    def __init__(self, dynamics: Dynamics, chunk: int | None) -> None:
        self._dynamics = dynamics
        self._sizes = [leaf.numel() for leaf in dynamics.leaves]
        self.count = sum(self._sizes)
        self.state = dynamics.start()
        together = chunk or max(1, WORKING_BYTES // max(1, dynamics.state_bytes))
        self.chunks = [(low, min(low + together, self.count)) for low in range(0, self.count, together)]
        self.reset()
        for place, leaf in dynamics.given_states.items():  # a given initial state depends on its leaf one to one
            low, size = sum(self._sizes[:leaf]), self._sizes[leaf]
            value = self.state[place]
            self._tangents[place][low : low + size] = torch.eye(size, dtype=value.dtype, device=value.device).reshape(
                size, *value.shape
            )

    def reset(self) -> None:
        """Take the state as given: Z = 0."""
        self._tangents = [value.new_zeros(self.count, *value.shape) for value in self.state]

    def advance(self, t: int) -> None:
        """Push s and Z through step t, counted from 0."""
        dynamics = self._dynamics
        if not self.count:
            self.state = dynamics.advance(self.state, t)
            return
        dynamics.cost.gradients += 1
        for chunk in self.chunks:
            after = self.push(t, chunk)
        self.state = after

    @torch.enable_grad()
    def push(self, t: int, chunk: tuple[int, int]) -> RunState:
        """Push some of the tangents through step t; returns the state after it."""
        dynamics = self._dynamics
        low, high = chunk

        def step(state: RunState, leaves: Sequence[Tensor]) -> RunState:
            weights, states = dynamics.split(state)
            gradients = grad(lambda w: dynamics.loss(w, leaves, t))(weights)
            return dynamics.update(weights, gradients, states, dynamics.numbers.rows(leaves, t), t)

        def push(tangents: RunState, directions: Sequence[Tensor]) -> tuple[RunState, RunState]:
            after, pushed = jvp(step, (self.state, dynamics.leaves), (tangents, directions))[:2]
            return after, pushed

        dynamics.cost.products += high - low
        inputs = [z[low:high] for z in self._tangents]
        after, outputs = vmap(push, out_dims=STATE_ONCE, randomness="same")(inputs, self._directions(low, high))
        for z, new in zip(self._tangents, outputs, strict=True):
            z[low:high] = new
        return [value.detach() for value in after]

    def notes(self) -> list[str]:
        """What there is to say if the first loss is another one under torch.func."""
        dynamics, weights = self._dynamics, self._dynamics.weights
        with torch.no_grad():
            usual = float(dynamics.loss(weights, dynamics.leaves, 0))
        transformed = float(grad_and_value(lambda w: dynamics.loss(w, dynamics.leaves, 0))(weights)[1])
        if abs(transformed - usual) <= torch.finfo(weights[0].dtype).eps ** 0.5 * abs(usual) or usual != usual:
            return []
        return [
            f"the first loss is {transformed:.6g} under torch.func and {usual:.6g} without: it draws its random numbers in "
            "another order, as dropout does on a tensor that is not contiguous. The derivative is right, but of a run with other "
            "random numbers than the other methods'. Call .contiguous() before the dropout"
        ]

    def _directions(self, low: int, high: int) -> list[Tensor]:
        """Unit vectors `low` ... `high` - 1 of the H, in the shapes of the leaves."""
        directions, first = [], 0
        for leaf, size in zip(self._dynamics.leaves, self._sizes, strict=True):
            unit = leaf.new_zeros(high - low, size)
            inside = range(max(low, first), min(high, first + size))
            unit[[i - low for i in inside], [i - first for i in inside]] = 1
            directions.append(unit.reshape(high - low, *leaf.shape))
            first += size
        return directions

    def contract(self, slopes: Slopes) -> list[list[Tensor]]:
        """[loss][leaf] ∂E/∂s · Z + ∂E/∂λ."""
        found = []
        for by_weights, direct in zip(slopes.by_weights, slopes.by_leaves, strict=True):
            total = sum(
                z.reshape(self.count, slope.numel()) @ slope.flatten()
                for z, slope in zip(self._tangents, by_weights, strict=False)
            )
            parts = torch.as_tensor(total).split(self._sizes)
            found.append([d + part.reshape(d.shape).to(d.dtype) for d, part in zip(direct, parts, strict=True)])
        return found


def check_chunk(chunk: int | None, who: str) -> None:
    """Raise unless it counts tangents."""
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"{who} got chunk={chunk!r}: it counts tangents. Give an integer >= 1, or None.")
