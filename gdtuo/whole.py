"""`WholeBucket`: one parameter in its own shape, for rules that look at more than one weight or branch on a number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layout import Bucket, Run, unflatten
from .pullback import derive
from .tape import Array

__all__ = ["WholeBucket"]


class WholeBucket(Bucket):
    """One parameter, updated and pulled back by calls of its rule."""

    def _initial(self) -> dict[str, Tensor]:
        weights = self.params[0].detach().clone()
        return self._check_state(weights, self.recipe.rule.init(weights, self.recipe.present))

    @property
    def _shape(self) -> torch.Size:
        return self.params[0].shape

    def _views(self, i: int) -> dict[str, Tensor]:
        return dict(self.arrays)

    def _row(self) -> slice:
        place, per_element = self.places[0], self.per == "element"
        return slice(place.row, place.row + (self.params[0].numel() if per_element else 1))

    def _hyper(self, values: Array) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Values of the hyperparameters, and slopes of those that are learned."""
        rows = torch.as_tensor(values, device=self.device)
        columns = [unflatten(x, self.params[0]) if len(rows) > 1 else x[0] for x in rows.unbind(1)]
        hyper = {name: columns[self.names.index(name)] for name in self.recipe.present}
        slopes = {name: columns[len(self.names) + self.learned.index(name)] for name in self.recipe.own}
        return hyper, slopes

    def _state(self) -> dict[str, Tensor]:
        return {name: self.arrays[name] for name in self.state_names}

    def pull(self, run: Run, table: Array, products: Tensor | None) -> None:
        assert self.last is not None
        recipe, place, count = self.recipe, self.places[0], len(self.learned)
        (gradient,) = self.gradients(0, 1)
        if recipe.traced:
            tangents = {name: self.arrays[f"trace_{name}"] for name in recipe.own}
            moved = self.last[place.index][-1]
        else:
            none = torch.empty(0)
            hyper, slopes = self._hyper(self.last[place.index : place.index + 1])
            weights, before = self.arrays.get("last_weights", none), self.arrays.get("last_gradient", none)
            delta, derivatives = recipe.rule.replay(recipe.own, weights, before, self._state(), hyper, run.step)
            tangents = {name: z * slopes[name] for name, z in zip(recipe.own, derivatives, strict=True)}
            moved = delta.double().square().sum()
        g = gradient.double() if gradient.device.type != "mps" else gradient
        sums = [torch.zeros((), dtype=g.dtype, device=g.device)] * (2 * count)
        for name, z in tangents.items():
            j, product = self.learned.index(name), g * z
            sums[j], sums[count + j] = product.sum(), (z.to(g.dtype) ** 2).sum()
            if products is not None:
                products[self._row(), j] = product.flatten().to(products)
        row = torch.stack([*sums, (g * g).sum(), torch.as_tensor(moved, dtype=g.dtype, device=g.device)])
        table[place.group if products is not None else place.row] += _like(row, table)

    def update(self, run: Run, values: Array, tick: int) -> None:
        recipe, state, step = self.recipe, self._state(), run.step + 1
        weights, (gradient,) = self.params[0].detach(), self.gradients(0, 1)
        hyper, slopes = self._hyper(values[self._row()])
        arguments = (weights.clone(), gradient.detach(), state, hyper, step)
        tangents: list[Tensor] = []
        if tick and recipe.traced and recipe.closed_form:
            delta, after = recipe.rule.update(*arguments)
            _, tangents = recipe.rule.replay(recipe.own, weights.clone(), gradient, after, hyper, step)
        elif tick and recipe.traced:
            delta, tangents, after = derive(recipe.rule, recipe.own, *arguments)
        else:
            delta, after = recipe.rule.update(*arguments)
        if tick and recipe.own and self.last is not None:
            place = self.places[0]
            self.last[place.index, :-1] = values[place.row]
            self.last[place.index, -1] = _like(delta.double().square().sum(), self.last) if recipe.traced else 0.0
            for name, z in zip(recipe.own, tangents, strict=False):
                self.arrays[f"trace_{name}"].mul_(recipe.decay).add_(z * slopes[name])
            for name, value in (("last_weights", weights), ("last_gradient", gradient)):
                if name in self.arrays:
                    self.arrays[name].copy_(value)
        for name, value in state.items():
            value.copy_(after[name])
        weights.add_(delta)
        self._count(run)
        self._updated(run, tick)


def _like(x: Tensor, other: Array) -> Array:
    return x.to(other) if isinstance(other, Tensor) else x.cpu().numpy()
