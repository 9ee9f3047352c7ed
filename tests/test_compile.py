"""`torch.compile(opt.step)`: one graph, made once, beside the same tower in eager mode, number for number."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch._inductor.config
from cases import (
    F64,
    RICH,
    TOWERS,
    Awkward,
    Drift,
    Normalised,
    backward,
    learned_values,
    torch_adam,
    tower_values,
    two_groups,
)
from torch._dynamo.utils import counters

import gdtuo
import gdtuo.traced

TIGHT = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12, equal_nan=True)


@pytest.fixture(autouse=True)
def _fresh():
    """No graphs of other tests."""
    torch._dynamo.reset()
    counters.clear()


def numbers(optimizer: gdtuo.Level) -> dict[str, Any]:
    """Everything that an optimizer holds, as a nested dict: states, all levels, what was skipped, what users see."""
    saved = optimizer.state_dict()
    for entries in saved["state"].values():
        if "pending" in entries:
            entries["pending"] = entries["pending"] > 0  # by which number does not matter
    return {
        "state": {f"{i}/{key}": value for i, entries in saved["state"].items() for key, value in entries.items()},
        "tower": tower_values(optimizer),
        "hyperparameters": torch.tensor(list(optimizer.hyperparameters().values()), dtype=F64),
        "hypergradients": torch.tensor(list(optimizer.hypergradients().values()), dtype=F64),
        "counts": [(group.get("skipped"), group.get("steps")) for group in saved["param_groups"]],
    }


class Twins:
    """Two towers over two models that start alike, the first of them compiled."""

    def __init__(
        self,
        build: Callable[[Awkward], gdtuo.Level],
        backend: str = "eager",
        compare: Callable[[Any, Any], None] = TIGHT,
        dtype: torch.dtype = F64,
    ) -> None:
        self.models = [Awkward(dtype), Awkward(dtype)]
        self.compiled, self.eager = (build(model) for model in self.models)
        self.step = torch.compile(self.compiled.step, fullgraph=True, backend=backend)
        self.hyperstep = torch.compile(self.compiled.hyperstep, fullgraph=True, backend=backend)
        self.compare, self.dtype = compare, dtype

    def run(self, steps: range, change: Callable[[int, Awkward, gdtuo.Level], None] = lambda *_: None) -> None:
        """Step both, and compare all that they hold after each step."""
        for t in steps:
            for model, optimizer, step in zip(self.models, self.optimizers, (self.step, self.eager.step), strict=True):
                backward(model, t, self.dtype)
                change(t, model, optimizer)
                step()
            self.check(t)

    @property
    def optimizers(self) -> tuple[gdtuo.Level, gdtuo.Level]:
        return self.compiled, self.eager

    def check(self, when: Any) -> None:
        for name, a, b in zip(("weight",) * 5, *(model.weights() for model in self.models), strict=True):
            self.compare(a, b, msg=lambda text, name=name: f"after {when}, {name}: {text}")
        found, wanted = (numbers(optimizer) for optimizer in self.optimizers)
        for name, value in wanted.items():
            self.compare(found[name], value, msg=lambda text, name=name: f"after {when}, {name}: {text}")


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@contextmanager
def no_more_graphs() -> Iterator[None]:
    before = graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    assert graphs() == before


def tower(level: type[gdtuo.Level], height: int, settings: Mapping[str, Any], two: bool = True, **options: Any) -> Callable:
    """Builds a tower: SGD with momentum above, then plain SGD."""

    def build(model: Awkward) -> gdtuo.Level:
        above, kind = None, options.get("hypergradient", "cosine")
        for k in range(height, 0, -1):
            more = {"momentum": 0.5} if k == 1 and height > 1 else {}
            above = gdtuo.SGD(lr=0.02, hypergradient=kind, **more, **({"optimizer": above} if above else {}))
        groups = two_groups(model, settings["lr"]) if two else model.parameters()
        return level(groups, **settings, **({"optimizer": above, **options} if above else {}))

    return build


SGD = (gdtuo.SGD, {"lr": 0.05, **RICH["sgd"]})
ADAM = (gdtuo.Adam, {"lr": 0.02, "eps": 1e-2, **RICH["adam"]})
ADAMW = (gdtuo.AdamW, {"lr": 0.02, "eps": 1e-2, **RICH["adamw"]})
RMSPROP = (gdtuo.RMSProp, {"lr": 0.01, "eps": 1e-2, **RICH["rmsprop"]})
ADAGRAD = (gdtuo.AdaGrad, {"lr": 0.05, "eps": 1e-2, **RICH["adagrad"]})
NADAM = (gdtuo.NAdam, {"lr": 0.02, "eps": 1e-2, **RICH["nadam"]})
DRIFT = (Drift, {"lr": 0.02})
NORMALISED = (Normalised, {"lr": 0.02})

#: rule, height, learn, per, hypergradient, horizon, two groups, backend
COVER = [
    (SGD, 3, "all", "tensor", "exact", 5, True, "eager"),
    (ADAMW, 1, "lr", "element", "cosine", 5, True, "eager"),
    (ADAM, 1, "all", "group", "exact", 1, False, "aot_eager"),
    (RMSPROP, 1, "all", "element", "cosine", 1, False, "eager"),
    (ADAGRAD, 1, "all", "tensor", "cosine", 1, False, "eager"),
    (NADAM, 1, ("lr", "momentum_decay"), "group", "cosine", 1, True, "eager"),
    (DRIFT, 1, "all", "group", "cosine", 5, True, "eager"),
    (NORMALISED, 1, ("lr", "pull"), "tensor", "exact", 5, False, "aot_eager"),
    (SGD, 0, "lr", "group", "cosine", 1, True, "eager"),
    (ADAM, 0, "lr", "group", "cosine", 1, False, "eager"),
    (NORMALISED, 0, "lr", "group", "cosine", 1, True, "eager"),
]


def named(case: tuple) -> str:
    (level, _), *rest = case
    return "-".join([level.__name__, *map(str, rest)])


@pytest.mark.parametrize("case", COVER, ids=named)
def test_item_15_20_steps_are_one_graph_and_equal_the_eager_tower(case):
    (level, settings), height, learn, per, kind, horizon, two, backend = case
    options = {"learn": learn, "per": per, "hypergradient": kind, "horizon": horizon}
    twins = Twins(tower(level, height, settings, two, **options), backend)
    start = learned_values(twins.eager)
    twins.run(range(2))
    with no_more_graphs():
        twins.run(range(2, 20))
    assert graphs() == 1
    after = learned_values(twins.eager)
    assert not any(torch.equal(after[key], value) for key, value in start.items())  # and it has learned


def test_sizes_of_one_optimizer_say_nothing_about_the_next():
    """torch.compile takes a number that was another one at the same place before for one that varies, and compiles for all."""
    varying = []

    def backend(module: torch.fx.GraphModule, examples: list[Any]) -> Callable:
        varying.extend(x for x in examples if not isinstance(x, torch.Tensor))
        return module.forward

    def build(model: Awkward) -> gdtuo.Level:
        groups = [{"params": [p]} for p in (model.tied, model.bias, model.scale)]
        return gdtuo.Adam(groups, per="tensor", optimizer=gdtuo.SGD())

    for make in (tower(gdtuo.SGD, 1, {"lr": 0.05}), build):
        optimizer = make(model := Awkward())
        backward(model, 0)
        torch.compile(optimizer.step, fullgraph=True, backend=backend)()
    assert graphs() == 2
    assert not varying


@pytest.fixture(scope="module")
def inductor(tmp_path_factory):
    """torch's own compiler, with an empty cache."""
    # (pytest's own way to set a number of torch's configuration would take it away afterwards)
    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(compile_threads=1):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield "inductor"


def test_item_15_by_torchs_own_compiler(inductor, monkeypatch):
    """One parameter stands alone, others are gathered; what an update remembers of the weights is older than the update."""
    monkeypatch.setattr(gdtuo.traced, "ALONE", 16)
    build = tower(gdtuo.AdamW, 1, {"lr": 0.02, "eps": 1e-2}, two=False, learn=("lr", "weight_decay"), horizon=1)
    twins = Twins(build, inductor)
    assert "last_weights" in twins.compiled.state[twins.models[0].tied]
    twins.run(range(2))
    with no_more_graphs():
        twins.run(range(2, 20))
    assert graphs() == 1


# ---------------------------------------------------------------- what changes from step to step


@pytest.mark.filterwarnings("ignore:Detected call of")  # the scheduler watches the step that is not compiled
def test_item_15_a_tensor_lr_may_change_at_each_step_and_a_number_makes_one_more_graph():
    def build(model: Awkward) -> gdtuo.Level:
        lr = torch.tensor(0.02, dtype=F64)
        return gdtuo.SGD(two_groups(model, lr), lr=lr, momentum=0.8, optimizer=gdtuo.SGD(lr=0.05))

    twins = Twins(build)
    schedule = {o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 0.8**t) for o in twins.optimizers}

    def change(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        if t:
            schedule[optimizer].step()

    twins.run(range(2), change)
    with no_more_graphs():
        twins.run(range(2, 10), change)
    assert twins.compiled.param_groups[1]["lr"].item() == pytest.approx(0.01 * 0.8**9, rel=1e-12)
    assert graphs() == 1

    def number(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        optimizer.param_groups[0]["momentum"] = 0.05 * t

    twins.run(range(10, 14), number)
    assert graphs() == 2


def test_late_gradients_add_nothing_and_bad_ones_freeze_their_group():
    """The last update of a parameter that has had none is 0/0; a gradient that is NaN is counted."""
    twins = Twins(tower(gdtuo.Adam, 1, {"lr": 0.02, "eps": 1e-2}, learn=("lr", "beta1")))

    def change(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        if t == 0:
            model.bias.grad = None
        if t in (3, 4):
            model.bias.grad[2] = math.nan

    twins.run(range(2), change)
    with no_more_graphs():
        twins.run(range(2, 8), change)
    assert twins.compiled.skipped >= 2
    assert all(math.isfinite(value) for value in twins.compiled.hyperparameters().values())


def test_each_pattern_of_absent_gradients_has_a_graph():
    """And one more, once it is known that parameters no longer have one history."""
    twins = Twins(tower(gdtuo.SGD, 1, {"lr": 0.05, "momentum": 0.8}, two=False))

    def change(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        if t % 3 == 2:
            model.bias.grad = None
        if t == 5:
            model.zero_grad()

    twins.run(range(6), change)
    assert graphs() <= 4
    with no_more_graphs():
        twins.run(range(6, 14), change)


def test_compiled_and_eager_steps_take_turns():
    """Everything that Python remembers of an eager step is looked up again after a compiled one, and the other way round."""
    twins = Twins(tower(gdtuo.SGD, 1, {"lr": 0.05, "momentum": 0.8}, two=False))
    compiled, eager = twins.step, twins.compiled.step
    fresh = []

    def change(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        if t == 5:
            model.bias.grad = None
        if t == 7:
            optimizer.param_groups[0]["lr"] = 0.03
        if t == 8:
            optimizer.param_groups[0]["lr"] = 0.05
        if t in (9, 11):
            optimizer.learning = t == 11
        fresh.append(torch.tensor(list(optimizer.hypergradients().values())) if t % 2 else None)

    for t in range(14):
        twins.step = eager if t in (1, 2, 5, 8, 12) else compiled
        twins.run(range(t, t + 1), change)
        twins.compare(*fresh[-2:]) if t % 2 else None
    assert any(x is not None and x.abs().max() > 1e-3 for x in fresh)


def test_hyperstep_compiles_too():
    twins = Twins(tower(gdtuo.SGD, 1, {"lr": 0.05, "weight_decay": 0.1}, learn=("lr", "weight_decay")))
    for t in range(4):
        twins.run(range(2 * t, 2 * t + 1))
        for model, hyperstep in zip(twins.models, (twins.hyperstep, twins.eager.hyperstep), strict=True):
            backward(model, 2 * t + 1)
            hyperstep()
        twins.check(f"hyperstep {t}")
    assert graphs() == 2


def test_a_pause_and_steps_that_do_not_learn():
    twins = Twins(tower(gdtuo.SGD, 1, {"lr": 0.05}, two=False, learn_after=3, learn_every=2))
    twins.run(range(2))
    with no_more_graphs():
        twins.run(range(2, 9))
    moved = learned_values(twins.compiled)
    for optimizer in twins.optimizers:
        optimizer.learning = False
    twins.run(range(9, 12))
    assert all(torch.equal(moved[key], value) for key, value in learned_values(twins.compiled).items())
    for optimizer in twins.optimizers:
        optimizer.learning = True
    twins.run(range(12, 16))
    assert graphs() == 2


def test_groups_with_towers_of_their_own_are_one_graph():
    def build(model: Awkward) -> gdtuo.Level:
        body, head = two_groups(model, 0.02)
        body["learn"] = "lr"
        head |= {"optimizer": gdtuo.Adam(lr=0.02)}
        return gdtuo.SGD([body, head], lr=0.05, momentum=0.8, learn=("lr", "momentum"), optimizer=gdtuo.SGD(lr=0.05))

    twins = Twins(build)
    twins.run(range(5))
    assert graphs() == 1


def test_the_layout_may_change_in_mid_run():
    """A frozen weight thaws, a penalty that has had several values is switched off, a group comes: each is a new graph."""
    options = {"learn": ("lr", "momentum")}
    twins = Twins(tower(gdtuo.SGD, 1, {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}, two=False, **options))
    extra = {}

    def change(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        if t == 2:
            model.frozen.requires_grad_(True)
            backward(model, t)
        optimizer.param_groups[0]["weight_decay"] = (0.1, 0.1, 0.05, 0.07, 0.0, 0.0, 0.0)[t]
        if t == 5:
            extra[optimizer] = torch.nn.Parameter(torch.ones(3, dtype=F64))
            optimizer.add_param_group({"params": [extra[optimizer]], "lr": 0.05})
        if t >= 5:
            extra[optimizer].grad = extra[optimizer].detach() * t

    twins.run(range(7), change)
    assert graphs() == 4
    twins.compare(*extra.values())


# ---------------------------------------------------------------- saving


def test_copies_and_loaded_states_continue():
    build = tower(gdtuo.SGD, 1, {"lr": 0.05, "momentum": 0.8}, two=False)
    twins = Twins(build)
    twins.run(range(3))
    copied = copy.deepcopy((twins.models[0], twins.compiled))
    model = copy.deepcopy(twins.models[0])
    loaded = model, build(model)
    loaded[1].load_state_dict(twins.compiled.state_dict())
    twins.run(range(3, 6))
    for model, optimizer in (copied, loaded):
        step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
        for t in range(3, 6):
            backward(model, t)
            step()
        for name, value in numbers(twins.compiled).items():
            twins.compare(numbers(optimizer)[name], value)
    before = twins.compiled.state_dict()
    for optimizer in twins.optimizers:
        optimizer.load_state_dict(before)
    twins.run(range(6, 9))


# ---------------------------------------------------------------- parameters of every kind


def test_complex_transposed_and_single_parameters():
    shapes = [(3, 4), (), (2, 2, 3, 3), (5,)]
    kinds = [torch.complex128, F64, F64, F64]
    sides = []
    for compiled in (True, False):
        make = torch.Generator().manual_seed(1)
        tensors = [torch.randn(shape, generator=make, dtype=kind) for shape, kind in zip(shapes, kinds, strict=True)]
        tensors[2] = tensors[2].to(memory_format=torch.channels_last)
        params = [torch.nn.Parameter(x) for x in tensors]
        optimizer = gdtuo.RMSProp(params, lr=0.05, optimizer=gdtuo.SGD(lr=0.1))
        step = torch.compile(optimizer.step, fullgraph=True, backend="eager") if compiled else optimizer.step
        for _ in range(5):
            for p in params:
                p.grad = torch.randn(p.shape, generator=make, dtype=p.dtype) + p.detach()
            params[0].grad = params[0].grad.T.contiguous().T  # in another order in memory
            step()
        sides.append(([p.detach() for p in params], numbers(optimizer)))
    TIGHT(sides[0][0], sides[1][0])
    TIGHT(*[list(side[1]["state"].values()) for side in sides])
    TIGHT(*[side[1]["tower"] for side in sides])


def test_weights_of_16_bits():
    compare = functools.partial(torch.testing.assert_close, rtol=5e-2, atol=5e-2, equal_nan=True)
    build = tower(gdtuo.SGD, 1, {"lr": 0.05, "momentum": 0.8}, per="tensor")
    twins = Twins(build, compare=compare, dtype=torch.bfloat16)
    twins.run(range(4))
    assert all(value.dtype == F64 for value in learned_values(twins.compiled).values())


# ---------------------------------------------------------------- what cannot be compiled


def test_a_torch_optimizer_on_top_is_left_to_python():
    def build(model: Awkward) -> gdtuo.Level:
        return gdtuo.Adam(model.parameters(), lr=0.02, eps=1e-2, optimizer=torch_adam)

    twins = Twins(build)
    twins.step = torch.compile(twins.compiled.step, backend="eager")
    with pytest.warns(UserWarning, match=r"use a level of gdtuo, as optimizer=gdtuo\.Adam\(\)"):
        twins.run(range(3))
    assert counters["stats"]["unique_graphs"] == 0


def test_a_sparse_gradient_raises_as_in_eager_mode():
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = gdtuo.SGD(table.parameters(), optimizer=gdtuo.SGD())
    table(torch.tensor([1])).sum().backward()
    with pytest.warns(UserWarning, match="use sparse=False"), pytest.raises(RuntimeError, match="Use sparse=False"):
        torch.compile(optimizer.step, backend="eager")()


# ---------------------------------------------------------------- the same program without a compiler


#: Lion's signs and AdaGrad's first step make much of the last bit
STEADY = [shape for shape in TOWERS if not any(word in shape for word in ("torch", "lion", "exact"))]


@pytest.mark.parametrize("shape", STEADY)
def test_capturable_steps_are_the_same(shape):
    """`capturable=True` runs the program outside of torch.compile, for CUDA graphs; on the CPU it is as right as there."""

    def build(model: Awkward, capturable: bool = True) -> gdtuo.Level:
        groups = two_groups(model, 0.02)
        for group in groups:
            group["capturable"] = capturable
        return TOWERS[shape]().bind(groups)

    twins = Twins(build)
    assert twins.compiled._parts.engines[0].capturable
    twins.eager = build(twins.models[1], False)
    twins.step, seen = twins.compiled.step, []

    def change(t: int, model: Awkward, optimizer: gdtuo.Level) -> None:
        if t % 3 == 2:
            model.bias.grad = None
        seen.append(torch.tensor(list(optimizer.hypergradients().values())))

    twins.run(range(8), change)
    for found, wanted in zip(seen[0::2], seen[1::2], strict=True):
        twins.compare(found, wanted)
    for model, optimizer in zip(twins.models, twins.optimizers, strict=True):
        backward(model, 8)
        optimizer.hyperstep()
    twins.check("hyperstep")
