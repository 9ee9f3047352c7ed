"""`WholeBucket`: one parameter in its own shape, for rules that look at more than one weight or branch on a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layout import Bucket, Run, apart, unflatten
from .pullback import derive
from .rules import Number
from .tape import Array
from .trust import measured

__all__ = ["WholeBucket"]


class WholeBucket(Bucket):
    """One parameter, updated and pulled back by calls of its rule."""

    def _allocate(self, counters: torch.device) -> None:
        super()._allocate(counters)
        # torch 2.13 compiles writing to a float64 tensor without dimensions to nothing: it is to see one of one dimension
        self._single = {name: array.view(1) for name, array in self.arrays.items() if not array.dim()}

    def _initial(self) -> dict[str, Tensor]:
        weights = self.params[0].detach().clone()
        return self._check_state(weights, self.recipe.rule.init(weights, self.recipe.present))

    @property
    def _shape(self) -> torch.Size:
        return self.params[0].shape

    def _views(self, i: int) -> dict[str, Tensor]:
        return dict(self.arrays)

    @property
    def rows(self) -> slice:
        """Its rows among all rows of hyperparameters."""
        place, per_element = self.places[0], self.per == "element"
        return slice(place.row, place.row + (self.params[0].numel() if per_element else 1))

    def _hyper(self, values: Array) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values of the hyperparameters, and slopes of those that are learned."""
        rows = torch.as_tensor(values, device=self.device)
        columns = [unflatten(x, self.params[0]) if len(rows) > 1 else x[0] for x in rows.unbind(1)]
        hyper = {name: columns[self.names.index(name)] for name in self.recipe.present}
        slopes = {name: columns[len(self.names) + self.learned.index(name)] for name in self.recipe.own}
        return hyper, slopes

    def _array(self, name: str) -> Tensor:
        return self._single[name][0] if name in self._single else self.arrays[name]

    def _state(self) -> dict[str, Tensor]:
        return {name: self._array(name) for name in self.state_names}

    def lengths(self, i: int, step: int, values: Array) -> Tensor:
        (gradient,), rows = self.gradients(i, i + 1), torch.as_tensor(values[self.rows], device=self.device)
        arguments = self.params[i].detach(), gradient.detach(), self._state(), self._hyper(rows)[0], step
        return measured(self.recipe.rule, *arguments, like=rows)

    def pull(self, run: Run, table: Array, products: Tensor | None) -> None:
        assert self.last is not None
        place = self.places[0]
        last = torch.as_tensor(self.last[place.index : place.index + 1], device=self.device)
        row, found = self.pulled_back(last, run.step)
        if products is not None:
            for j, product in found.items():
                products[self.rows, j] = product.flatten().to(products)
        table[place.group if products is not None else place.row, : len(row)] += _like(row, table)

    def pulled_back(self, last: Tensor, step: Number) -> tuple[Tensor, dict[int, Tensor]]:
        """The last update, pulled back.

        Args:
            last: [1, A + H + 1] what is kept of it.
            step: its number.

        Returns:
            a row of the table of `Sums`, and the products g z by column.
        """
        recipe, count = self.recipe, len(self.learned)
        (gradient,) = self.gradients(0, 1)
        if recipe.traced:
            tangents = {name: self._array(f"trace_{name}") for name in recipe.own}
            moved = last[0, -1]
        else:
            none = torch.empty(0)
            hyper, slopes = self._hyper(last)
            weights, before = self.arrays.get("last_weights", none), self.arrays.get("last_gradient", none)
            delta, derivatives = recipe.rule.replay(recipe.own, weights, before, self._state(), hyper, step)
            tangents = {name: z * slopes[name] for name, z in zip(recipe.own, derivatives, strict=True)}
            moved = delta.double().square().sum()
        g = gradient.double() if gradient.device.type != "mps" else gradient
        sums = [torch.zeros((), dtype=g.dtype, device=g.device)] * (2 * count)
        products = {}
        for name, z in tangents.items():
            j, product = self.learned.index(name), g * z
            sums[j], sums[count + j], products[j] = product.sum(), (z.to(g.dtype) ** 2).sum(), product
        return torch.stack([*sums, (g * g).sum(), torch.as_tensor(moved, dtype=g.dtype, device=g.device)]), products

    def update(self, run: Run, values: Array, tick: int) -> None:
        place, learn = self.places[0], bool(tick and self.recipe.own and self.last is not None)
        moved = self.advance(torch.as_tensor(values[self.rows], device=self.device), run.step + 1, learn)
        if learn and self.last is not None:
            self.last[place.index, :-1] = values[place.row]
            self.last[place.index, -1] = _like(moved, self.last)
        self._count(run)
        self._updated(run, tick)

    def advance(self, values: Tensor, step: Number, learn: bool) -> Tensor:
        """Move the weights and all arrays by one update.

        Args:
            values: its rows of `values`.
            step: its number.
            learn: whether it is to be pulled back.

        Returns:
            |Δ|² where it is kept, else 0.
        """
        recipe, state = self.recipe, self._state()
        weights, (gradient,) = self.params[0].detach(), self.gradients(0, 1)
        hyper, slopes = self._hyper(values)
        arguments = (weights.clone(), gradient.detach(), state, hyper, step)
        tangents: list[Tensor] = []
        if learn and recipe.traced and recipe.closed_form:
            delta, after = recipe.rule.update(*arguments)
            _, tangents = recipe.rule.replay(recipe.own, weights.clone(), gradient, after, hyper, step)
        elif learn and recipe.traced:
            delta, tangents, after = derive(recipe.rule, recipe.own, *arguments)
        else:
            delta, after = recipe.rule.update(*arguments)
        if learn:
            for name, z in zip(recipe.own, tangents, strict=False):
                self._array(f"trace_{name}").mul_(recipe.decay).add_(z * slopes[name])
            for name, value in (("last_weights", weights), ("last_gradient", gradient)):
                if name in self.arrays:
                    self._array(name).copy_(apart(value))
        for name, value in state.items():
            value.copy_(apart(after[name]))
        weights.add_(delta)
        return delta.double().square().sum() if learn and recipe.traced else values.new_zeros(())


def _like(x: Tensor, other: Array) -> Array:
    return x.to(other) if isinstance(other, Tensor) else x.cpu().numpy()
