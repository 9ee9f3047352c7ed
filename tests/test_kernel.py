"""Kernels against the rules that they were recorded from, called directly on the same random arrays."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from cases import DriftRule
from torch import Tensor

import gdtuo
from gdtuo.blocks import Blocks, Workspace
from gdtuo.kernel import Kernel
from gdtuo.pullback import derive
from gdtuo.recipes import Recipe
from gdtuo.recording import UnrecordableError
from gdtuo.rules import Rule
from gdtuo.tape import quiet

F64 = torch.float64
N, STEP, DECAY = 33, 3, 0.7


class SwitchRule(DriftRule):
    """One of two updates, by a number: without a branch."""

    def update(self, weights, gradient, state, hyper, step):
        delta, after = super().update(weights, gradient, state, hyper, step)
        return torch.where(step * hyper["momentum"] > 2, delta.exp() - 1, 2 * delta), after


RULES: dict[str, tuple[Rule, dict[str, float]]] = {
    "sgd": (gdtuo.SGD.rule(), {"lr": 0.1}),
    "momentum": (gdtuo.SGD.rule(), {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "nesterov": (gdtuo.SGD.rule(nesterov=True, maximize=True), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (gdtuo.Adam.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2}),
    "amsgrad": (gdtuo.Adam.rule(amsgrad=True), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.1}),
    "adamw": (gdtuo.AdamW.rule(maximize=True), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.1}),
    "adagrad": (gdtuo.AdaGrad.rule(), {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-2}),
    "rmsprop": (gdtuo.RMSProp.rule(), {"lr": 0.05, "alpha": 0.9, "eps": 1e-2}),
    "centered": (
        gdtuo.RMSProp.rule(centered=True),
        {"lr": 0.05, "alpha": 0.9, "eps": 1e-2, "momentum": 0.8, "weight_decay": 0.1},
    ),
    "lion": (gdtuo.Lion.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}),
    "nadam": (gdtuo.NAdam.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "momentum_decay": 0.1}),
    "radam": (gdtuo.RAdam.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.1}),
    "drift": (DriftRule(), {"lr": 0.05, "momentum": 0.7}),
    "switch": (SwitchRule(), {"lr": 0.05, "momentum": 0.7}),
    "switch, the other way": (SwitchRule(), {"lr": 0.05, "momentum": 0.6}),
}
#: traced, closed form, spread
WAYS = {
    "rebuilt": (False, True, False),
    "traced": (True, True, False),
    "derived": (True, False, False),
    "spread": (True, True, True),
}


def recipes() -> list:
    found = []
    for name, (rule, numbers) in RULES.items():
        for learned in ("lr", "all"):
            own = tuple(numbers) if learned == "all" else ("lr",)
            for way, (traced, closed_form, spread) in WAYS.items():
                if closed_form and not rule.closed_form and way != "spread":
                    continue
                closed = closed_form and rule.closed_form
                recipe = Recipe(rule, tuple(numbers), own, F64, traced, closed, DECAY, own if spread else (), learned == "all")
                found.append(pytest.param(recipe, numbers, id=f"{name}-{learned}-{way}"))
    return found


class Case:
    """A recipe with random arrays and numbers, and what the rule itself makes of them."""

    def __init__(self, recipe: Recipe, numbers: dict[str, float], seed: int = 0) -> None:
        self.recipe, self.rule = recipe, recipe.rule
        rng = torch.Generator().manual_seed(seed)

        def positive(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(N, generator=rng, dtype=F64)

        self.arrays = {name: torch.randn(N, generator=rng, dtype=F64) for name in ("weights", "gradient", *recipe.traces)}
        for name in recipe.remembered:
            self.arrays[name] = torch.randn(N, generator=rng, dtype=F64)
        for name in recipe.state:  # the variance of a centred rule must be positive
            self.arrays[name] = positive(0.1, 0.3) if name == "grad_avg" else positive(0.5, 1.5)
        self.numbers = dict(numbers) | {f"slope {name}": 0.5 + 0.25 * i for i, name in enumerate(recipe.own)}
        self.numbers |= dict.fromkeys(recipe.uniform, 0.3)
        if recipe.spread:
            for name in [*recipe.own, *(f"slope {name}" for name in recipe.own)]:
                self.arrays[name] = self.numbers[name] * positive(0.9, 1.05)

    def of(self, name: str) -> Tensor:
        if self.recipe.spread and name in self.arrays:
            return self.arrays[name]
        return torch.tensor(self.numbers[name], dtype=F64)

    @property
    def hyper(self) -> dict[str, Tensor]:
        return {name: self.of(name) for name in self.recipe.present}

    @property
    def state(self) -> dict[str, Tensor]:
        return {
            name: self.of(name) if name in self.recipe.uniform else self.arrays[name]
            for name in self.rule.init(torch.ones(1), self.recipe.present)
        }

    def update(self) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """Δ, tangents by forward mode, the state after."""
        own = self.recipe.own
        return derive(self.rule, own, self.arrays["weights"], self.arrays["gradient"], self.state, self.hyper, STEP)

    def slopes(self, tangents: list[Tensor]) -> list[Tensor]:
        return [z * self.of(f"slope {name}") for z, name in zip(tangents, self.recipe.own, strict=True)]


def as_numbers(kernel: Kernel, case: Case) -> tuple:
    with quiet():
        numbers = kernel.factors.evaluator(1)(given(kernel, case))
    return numbers, [torch.tensor(x, dtype=F64) for x in numbers]


def as_tensors(kernel: Kernel, case: Case) -> tuple:
    tensors = list(kernel.factors(torch.tensor(given(kernel, case), dtype=F64)[:, None])[:, 0].unbind(0))
    return tensors, tensors


def as_arrays(kernel: Kernel, case: Case) -> tuple:
    with quiet():
        found = kernel.factors.evaluator(2)(torch.tensor(given(kernel, case), dtype=F64)[:, None].expand(-1, 2).numpy())
    arrays = [torch.tensor([pair[0]] * 20 + [pair[1]] * (N - 20), dtype=F64) for pair in found.tolist()]
    return arrays, arrays


SCALARS = [as_numbers, as_tensors, as_arrays]


def given(kernel: Kernel, case: Case) -> list[float]:
    return [float(STEP) if name == "step" else case.numbers[name] for name in kernel.factors.inputs]


class Result:
    """A kernel that has run on copies of a case's arrays."""

    def __init__(self, case: Case, kind: str, scalars, kept: bool = False) -> None:
        kernel = case.recipe.kernel(kind)
        blocks = Blocks(kernel, kept)
        inputs = [case.arrays[name].clone() for name in kernel.inputs]
        places = [*inputs, *blocks.memory(N, torch.device("cpu"), Workspace())]
        for memory in places[len(inputs) :]:
            memory.fill_(torch.nan if memory.is_floating_point() else 1)
        numbers, tensors = scalars(kernel, case)
        blocks.run(places, numbers, tensors)
        self.arrays = dict(zip(kernel.inputs, inputs, strict=True))
        self.untouched = {name for i, name in enumerate(kernel.inputs) if i not in {home.array for home in kernel.homes}}
        self.dots = [row[0] for row in blocks.dots(places, [N])]
        parts = blocks.dots(places, [5, 8, N - 13])
        for row, whole in zip(parts, self.dots, strict=True):
            assert sum(row) == pytest.approx(whole, rel=1e-12)
        with quiet():
            self.sums = kernel.sums.evaluator(1)([*given(kernel, case), *self.dots])
            uniform = kernel.uniform.evaluator(1)(given(kernel, case))
        self.arrays |= zip(case.recipe.uniform, uniform, strict=kind != "pull")
        if kernel.change is not None:
            self.change = places[blocks.change] * tensors[kernel.change[1]]


def close(ours, theirs) -> None:
    torch.testing.assert_close(torch.as_tensor(ours, dtype=F64), torch.as_tensor(theirs, dtype=F64), rtol=1e-12, atol=1e-13)


def check_sums(found: list, gradient: Tensor, tangents: list[Tensor], moved: Tensor | None) -> None:
    """[⟨g, z⟩ ..., |z|² ..., |g|², |Δ|²]"""
    expected = [gradient.dot(z) for z in tangents] + [z.dot(z) for z in tangents] + [gradient.dot(gradient)]
    close(found, torch.stack([*expected, torch.zeros((), dtype=F64) if moved is None else moved.dot(moved)]))


@pytest.mark.parametrize("scalars", SCALARS)
@pytest.mark.parametrize(("recipe", "numbers"), recipes())
def test_update_and_learn(recipe, numbers, scalars):
    case = Case(recipe, numbers)
    delta, tangents, after = case.update()
    for kind in ("update", "learn"):
        result = Result(case, kind, scalars)
        close(result.arrays["weights"], case.arrays["weights"] + delta)
        for name, value in after.items():
            close(result.arrays[name], value)
        for name in result.untouched:
            assert torch.equal(result.arrays[name], case.arrays[name])
    assert "gradient" in result.untouched
    for name in recipe.remembered:
        assert torch.equal(result.arrays[name], case.arrays[name.removeprefix("last_")])
    for name, z in zip(recipe.traces, case.slopes(tangents), strict=recipe.traced):
        close(result.arrays[name], z + DECAY * case.arrays[name])
    moved = delta if recipe.traced and recipe.moved else torch.zeros(N, dtype=F64)
    close(result.sums[-1], moved.dot(moved))


@pytest.mark.parametrize("scalars", SCALARS)
@pytest.mark.parametrize(("recipe", "numbers"), recipes())
def test_pull(recipe, numbers, scalars):
    case = Case(recipe, numbers, seed=1)
    result = Result(case, "pull", scalars)
    assert result.untouched == set(recipe.kernel("pull").inputs)
    for name in result.untouched:
        assert torch.equal(result.arrays[name], case.arrays[name])
    if recipe.traced:
        check_sums(result.sums, case.arrays["gradient"], [case.arrays[name] for name in recipe.traces], None)
        return
    none = torch.empty(0, dtype=F64)
    last = [case.arrays.get(name, none) for name in ("last_weights", "last_gradient")]
    delta, tangents = recipe.rule.replay(recipe.own, *last, case.state, case.hyper, STEP)
    check_sums(result.sums, case.arrays["gradient"], case.slopes(tangents), delta if recipe.moved else None)


@pytest.mark.parametrize("scalars", SCALARS)
@pytest.mark.parametrize(("recipe", "numbers"), [p for p in recipes() if p.id.endswith("rebuilt")])
def test_change_and_compact(recipe, numbers, scalars):
    case = Case(recipe, numbers, seed=2)
    delta, tangents, after = case.update()
    for kind in ("change", "compact"):
        result = Result(case, kind, scalars, kept=True)
        close(result.change, delta)
        for name, value in after.items():
            close(result.arrays[name], value)
        assert {"weights", "gradient"}.intersection(result.arrays) <= result.untouched
        for name in result.untouched:
            assert torch.equal(result.arrays[name], case.arrays[name])
    for name in recipe.remembered:
        assert torch.equal(result.arrays[name], case.arrays[name.removeprefix("last_")])
    check_sums(result.sums, case.arrays["gradient"], case.slopes(tangents), delta if recipe.moved else None)


@pytest.mark.parametrize(("recipe", "numbers"), [p for p in recipes() if p.id.endswith("rebuilt")])
def test_what_compact_keeps_serves_the_next_gradient(recipe, numbers):
    """Where tangents stand apart from weights and gradient, dot products alone pull the update back."""
    kernel, case = recipe.kernel("compact"), Case(recipe, numbers, seed=3)
    _, tangents, _ = case.update()
    delta = case.update()[0]
    blocks, workspace = Blocks(kernel, True), Workspace()
    inputs = [case.arrays[name].clone() for name in kernel.inputs]
    places = [*inputs, *blocks.memory(N, torch.device("cpu"), workspace)]
    blocks.run(places, *as_numbers(kernel, case))
    gradient = torch.randn(N, generator=torch.Generator().manual_seed(9), dtype=F64)
    for name, x in zip(kernel.inputs, inputs, strict=True):
        if name == "gradient":
            x.copy_(gradient)
        elif name == "weights":
            x.fill_(torch.nan)
    for i, memory in enumerate(places[len(inputs) :]):
        if i not in blocks.kept:
            memory.fill_(torch.nan)
    with quiet():
        sums = kernel.sums.evaluator(1)([*given(kernel, case), *(row[0] for row in blocks.dots(places, [N]))])
    if kernel.lasting:
        check_sums(sums, gradient, case.slopes(tangents), delta if recipe.moved else None)
    else:  # plain SGD moves along the gradient itself, decayed weights among it
        assert {"weight_decay"}.intersection(numbers) or numbers.keys() == {"lr"}


class BranchOnStep(DriftRule):
    def update(self, weights, gradient, state, hyper, step):
        return super().update(weights, gradient if step > 1 else 2 * gradient, state, hyper, step)


class BranchOnNumber(DriftRule):
    def update(self, weights, gradient, state, hyper, step):
        return super().update(weights, gradient if hyper["lr"] > 0.5 else 2 * gradient, state, hyper, step)


class FixedLength(DriftRule):
    def update(self, weights, gradient, state, hyper, step):
        ramp = torch.linspace(1, 2, weights.numel(), dtype=weights.dtype)
        return super().update(weights, gradient * ramp, state, hyper, step)


class AnotherLength(DriftRule):
    def update(self, weights, gradient, state, hyper, step):
        return super().update(weights, gradient * gradient[:3].sum(), state, hyper, step)


@pytest.mark.parametrize("kind", ["update", "learn"])
@pytest.mark.parametrize("rule", [BranchOnStep, BranchOnNumber, FixedLength, AnotherLength])
def test_what_has_no_kernel(rule, kind):
    recipe = Recipe(rule(), ("lr", "momentum"), ("lr",), F64, True, False, 0.0, (), False)
    with pytest.raises(UnrecordableError):
        recipe.kernel(kind)


CONSTANT = """
import torch, gdtuo
class Rule(gdtuo.Rule):
    hyperparameters = {"lr": (1e-2, gdtuo.Positive())}
    def init(self, weights, hyper):
        return {}
    def update(self, weights, gradient, state, hyper, step):
        return -hyper["lr"] * torch.tensor(2.0) * gradient, {}
class Level(gdtuo.Level):
    rule = Rule
w = torch.nn.Parameter(torch.ones(5))
w.grad = torch.arange(5.0)
Level([w], lr=0.1, optimizer=gdtuo.SGD(), trust=float('inf')).step()
torch.testing.assert_close(w.detach(), 1 - 0.2 * torch.arange(5.0))
"""


def test_a_rule_may_make_a_constant():
    """In another process, since it must not hang this one."""
    subprocess.run([sys.executable, "-c", CONSTANT], check=True, timeout=60)
