"""Kernels as Python functions, for torch.compile to read, against the rules that they were recorded from."""

from __future__ import annotations

import pytest
import torch
from test_kernel import STEP, Case, check_sums, close, recipes
from torch import Tensor

from gdtuo.emitted import kernel_function, number_function
from gdtuo.kernel import Kernel, Outcome
from gdtuo.rules import Rule


def numbers_of(case: Case, kernel: Kernel) -> list[Tensor]:
    """[2] each, the second of no interest."""
    names = kernel.factors.inputs
    return [torch.tensor([STEP if name == "step" else case.numbers[name], 0.5], dtype=torch.float64) for name in names]


def first(number: Tensor | float) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float64).reshape(-1)[0]


def run(case: Case, kind: str) -> tuple[dict[str, Tensor], list[float]]:
    """(what replaces the inputs, sums)"""
    kernel = case.recipe.kernel(kind)
    numbers = numbers_of(case, kernel)
    factors = [first(x) for x in number_function(kernel.factors)(*numbers)]
    results, pairs = kernel_function(kernel)(*(case.arrays[name] for name in kernel.inputs), *factors)
    dots = [torch.stack([a.dot(b), a.new_tensor(7.0)]) for a, b in pairs]
    sums = [first(x).item() for x in number_function(kernel.sums)(*numbers, *dots)]
    after = {kernel.inputs[home.array]: value for home, value in zip(kernel.homes, results, strict=True)}
    uniform = [first(x) for x in number_function(kernel.uniform)(*numbers)]
    return {**case.arrays, **after, **dict(zip(case.recipe.uniform, uniform, strict=kind != "pull"))}, sums


@pytest.mark.parametrize(("recipe", "numbers"), recipes())
def test_a_function_does_what_the_rule_does(recipe, numbers):
    case = Case(recipe, numbers)
    before = {name: array.clone() for name, array in case.arrays.items()}
    delta, tangents, after = case.update()
    for kind in ("update", "learn"):
        found, _ = run(case, kind)
        close(found["weights"], before["weights"] + delta)
        for name, value in after.items():
            close(found[name], value)
    for name, z in zip(recipe.traces, case.slopes(tangents), strict=bool(recipe.traces)):
        close(found[name], z + recipe.decay * before[name])
    assert all(torch.equal(case.arrays[name], array) for name, array in before.items())  # nothing is overwritten
    if recipe.traced:
        _, sums = run(case, "pull")
        check_sums(sums, before["gradient"], [before[name] for name in recipe.traces], None)


def test_constants_are_made_where_the_numbers_are():
    class Constant(Rule):
        """Steps of a size that no hyperparameter tells."""

        def init(self, weights, hyper):
            return {}

        def update(self, weights, gradient, state, hyper, step):
            return -torch.where(step > 2, torch.tensor(0.25), torch.tensor(0.5)) * gradient, state

    rule, ones = Constant(), {"weights": torch.ones(7), "gradient": torch.ones(7)}
    kernel = Kernel(lambda arrays, numbers: _outcome(rule, arrays, numbers), ones, ("step",))
    for step, size in ((1.0, 0.5), (3.0, 0.25)):
        (factor,) = number_function(kernel.factors)(torch.tensor([step], dtype=torch.float64))
        ((moved,), _) = kernel_function(kernel)(torch.zeros(5), torch.ones(5), factor[0].float())
        assert torch.equal(moved, torch.full((5,), -size))


def _outcome(rule: Rule, arrays: dict[str, Tensor], numbers: dict[str, Tensor]):
    delta, _ = rule.update(arrays["weights"], arrays["gradient"], {}, {}, numbers["step"])
    return Outcome({"weights": arrays["weights"] + delta})
