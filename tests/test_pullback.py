"""Hypergradients against a naive autograd tower, torch itself, central differences and complex numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import twin
from cases import NEWER, PAIRS

import gdtuo

SHAPES = [[(3,), (2, 2)], [(4,)]]  # two groups
MATRICES = [[(3, 1), (2, 2)], [(2, 2)]]  # as many weights, for what takes nothing else
CLASSES = {
    "sgd": gdtuo.SGD,
    "averaging": gdtuo.AveragingSGD,
    "adam": gdtuo.Adam,
    "adamw": gdtuo.AdamW,
    "adagrad": gdtuo.AdaGrad,
    "rmsprop": gdtuo.RMSProp,
    "lion": gdtuo.Lion,
    "nadam": gdtuo.NAdam,
    "radam": gdtuo.RAdam,
    "adafactor": gdtuo.Adafactor,
    "muon": gdtuo.Muon,
}
# every rule with all its hyperparameters away from 0, and its switches
CASES = [
    ("sgd", {"lr": 0.1}, {}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.2}, {}),
    ("sgd", {"lr": 0.1, "momentum": 0.8}, {}),
    ("sgd", {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.2}, {"maximize": True}),
    ("sgd", {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}, {"nesterov": True}),
    ("adam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2}, {}),
    ("averaging", {"lr": 0.1, "momentum": 0.7}, {}),
    ("averaging", {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}, {"maximize": True}),
    ("adam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2}, {"amsgrad": True}),
    ("adam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-4, "weight_decay": 0.2}, {"maximize": True}),
    ("adamw", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2}, {"amsgrad": True}),
    ("adamw", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2}, {"maximize": True}),
    ("adagrad", {"lr": 0.1, "eps": 1e-2}, {}),
    ("adagrad", {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.2, "eps": 1e-2}, {"maximize": True}),
    ("adagrad", {"lr": 0.1, "lr_decay": 0.3, "weight_decay": 0.2, "eps": 1e-2}, {"initial_accumulator_value": 0.1}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.9, "eps": 1e-2}, {}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.9, "eps": 1e-2, "momentum": 0.6}, {"maximize": True}),
    ("rmsprop", {"lr": 0.05, "alpha": 0.9, "eps": 0.1, "weight_decay": 0.2, "momentum": 0.6}, {"centered": True}),
    ("lion", {"lr": 0.05, "weight_decay": 0.2}, {"maximize": True}),
    ("nadam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2, "momentum_decay": 0.1}, {}),
    (
        "nadam",
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2, "momentum_decay": 0.1},
        {"decoupled_weight_decay": True, "maximize": True},
    ),
    ("radam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2}, {"maximize": True}),
    ("radam", {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.2}, {"decoupled_weight_decay": True}),
    ("adafactor", {"lr": 0.05, "beta2_decay": -0.6, "eps2": 1e-3, "d": 1.1}, {"maximize": True}),
    ("adafactor", {"lr": 0.05, "beta2_decay": -0.6, "eps2": 2.0, "d": 1.05, "weight_decay": 0.2}, {}),
    ("muon", {"lr": 0.05, "momentum": 0.8}, {"nesterov": False}),
    ("muon", {"lr": 0.05, "weight_decay": 0.2, "momentum": 0.8}, {"adjust_lr_fn": "match_rms_adamw"}),
]
IDS = [f"{rule}-{'-'.join([*(n for n in numbers if n != 'lr'), *switches])}" for rule, numbers, switches in CASES]


def those(chosen):
    """The cases whose rule a function chooses."""
    found = [(case, name) for case, name in zip(CASES, IDS, strict=True) if chosen(case[0])]
    return pytest.mark.parametrize(("rule", "numbers", "switches"), [case for case, _ in found], ids=[name for _, name in found])


#: those that are compared with another program; Muon's, in steps of 16 bits, has no differences: see test_muon.py
ELSEWHERE = those(lambda rule: rule in PAIRS and rule != "muon")
CLOSED = those(lambda rule: CLASSES[rule].rule.closed_form)
#: per, hypergradient, horizon: all of them, and some in which every pair of values occurs
WAYS = [(per, kind, horizon) for per in ("group", "tensor", "element") for kind in ("exact", "cosine") for horizon in (1, 3)]
COVER = [way for i, way in enumerate(WAYS) if i in (0, 3, 5, 6, 8, 11)]
#: what can be learned in which way; two cases of a newer rule share the cover
LEARNED = [
    pytest.param(*case, *way, id="-".join([name, *map(str, way)]))
    for i, (case, name) in enumerate(zip(CASES, IDS, strict=True))
    for way in (WAYS if case[0] not in NEWER else COVER[i % 2 :: 2])
    if way[0] != "element" or CLASSES[case[0]].rule.elementwise
]
DEAD = [(rule, *way) for rule in CLASSES for way in (WAYS if rule not in NEWER else COVER[1::2])]
COMPLETE = {
    "averaging": ("weight_decay",),
    "sgd": ("momentum", "dampening", "weight_decay"),
    "adagrad": ("lr_decay", "weight_decay"),
}
DEFAULTS = {
    "sgd": {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0},
    "averaging": {"weight_decay": 0.0},
    "adam": {"weight_decay": 0.0},
    "adamw": {},
    "adagrad": {"lr_decay": 0.0, "weight_decay": 0.0},
    "rmsprop": {"weight_decay": 0.0, "momentum": 0.0},
    "lion": {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    "nadam": {"weight_decay": 0.0},
    "radam": {"weight_decay": 0.0},
    "adafactor": {"weight_decay": 0.0},
    "muon": {"weight_decay": 0.0},
}


def shapes_of(rule: str) -> list:
    return MATRICES if rule in PAIRS and PAIRS[rule].matrices else SHAPES


def settings(rule: str, numbers: dict) -> dict:
    """A rule's numbers as constructor arguments."""
    result = dict(numbers)
    if "beta1" in result:
        result["betas"] = (result.pop("beta1"), result.pop("beta2"))
    if "eps2" in result:
        result["eps"] = (None, result.pop("eps2"))
    if rule == "muon":
        result.setdefault("weight_decay", 0.0)
    return result


class Problem:
    """A random smooth loss whose data differ at every step."""

    def __init__(self, seed: int = 0, shapes: list = SHAPES) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.start = [[torch.randn(shape, generator=rng, dtype=torch.float64) for shape in group] for group in shapes]
        n = sum(w.numel() for group in self.start for w in group)
        self.matrix = torch.randn(40, n, n, generator=rng, dtype=torch.float64) / n**0.5
        self.target = torch.randn(40, n, generator=rng, dtype=torch.float64)

    def loss(self, weights: list, t: int) -> torch.Tensor:
        w = torch.cat([w.reshape(-1) for group in weights for w in group])
        return 0.5 * (self.matrix[t] @ w - self.target[t]).square().sum() + w.sin().sum()

    def gradients(self, weights: list, t: int) -> list:
        leaves = [[w.detach().clone().requires_grad_() for w in group] for group in weights]
        self.loss(leaves, t).backward()
        return [[w.grad for w in group] for group in leaves]

    def parameters(self) -> list:
        return [[torch.nn.Parameter(w.clone()) for w in group] for group in self.start]


def groups_of(parameters: list, second: dict) -> list:
    return [{"params": parameters[0]}, {"params": parameters[1], **second}]


def labels(level: int, per: str, learn: tuple) -> dict:
    """(group, block, name) -> key of `hyperparameters()`."""
    keys = {}
    for g, group in enumerate(SHAPES):
        blocks = {"group": [""], "tensor": [f"/{i}" for i in range(len(group))]}[per]
        keys |= {(g, b, j): f"L{level}/g{g}/{name}{suffix}" for b, suffix in enumerate(blocks) for j, name in enumerate(learn)}
    return keys


def twin_of(rule: str, numbers: dict, switches: dict, second_lr: float, **options) -> twin.Level:
    """Of the weights' level, with its defaults."""
    full = DEFAULTS[rule] | numbers
    limited = options.get("kind") == "cosine" and options.get("per") != "element" and options.get("learn") == ("lr",)
    usual = {"horizon": 100 if limited else 1, "trust": 0.15 if limited else math.inf}
    return twin.Level(rule, [full, {**full, "lr": second_lr}], switches=switches, **(usual | options))


def run(problem: Problem, bottom: twin.Level, optimizer: gdtuo.Level, parameters: list, steps: int, tolerance: float) -> None:
    """Train both; compare every hypergradient before and after each step, every hyperparameter, every weight."""
    bottom.start([list(group) for group in problem.start])
    for t in range(steps):
        gradients = problem.gradients(bottom.tensors, t)
        for p in (p for group in parameters for p in group):
            p.grad = None
        problem.loss(parameters, t).backward()
        before = optimizer.hypergradients()
        slopes = getattr(bottom, "slopes", None)
        bottom.step(gradients)
        optimizer.step()
        after = optimizer.hypergradients()
        if t:
            compare_hypergradients(bottom, slopes, before, after, tolerance)
        compare_values(bottom, optimizer.hyperparameters(), tolerance)
        for ours, theirs in zip(parameters, bottom.tensors, strict=True):
            for p, w in zip(ours, theirs, strict=True):
                torch.testing.assert_close(p.detach(), w, rtol=tolerance, atol=tolerance)


def compare_hypergradients(bottom: twin.Level, slopes: list, before: dict, after: dict, tolerance: float) -> None:
    level, k = bottom, 0
    while level.above:
        used = slopes if k == 0 else level.used_slopes
        for g, gradient in enumerate(level.hypergradient):
            report = level.exact_report(g, level.hypergradient, used) if level.kind == "exact" else gradient
            if level.per == "element" or (k and bottom.per == "element"):
                for j, name in enumerate(level.learn):
                    for statistic, value in (
                        ("mean", report[:, j].mean()),
                        ("min", report[:, j].min()),
                        ("max", report[:, j].max()),
                    ):
                        if level.per == "element":
                            assert before[f"L{k}/g{g}/{name}/{statistic}"] == pytest.approx(
                                value.item(), rel=tolerance, abs=tolerance
                            )
                continue
            for (group, block, j), key in labels(k, level.per if k == 0 else "group", level.learn).items():
                if group == g:
                    expected = pytest.approx(report[block, j].item(), rel=tolerance, abs=tolerance)
                    assert before[key] == expected, key
                    assert after[key] == expected, key
        level, k = level.above, k + 1


def compare_values(bottom: twin.Level, values: dict, tolerance: float) -> None:
    level, k = bottom, 0
    while level.above:
        if level.per != "element":
            for (g, block, j), key in labels(k, level.per if k == 0 else "group", level.learn).items():
                name = level.learn[j]
                domain = level.domains.get(name, twin.DOMAINS[name])
                value = twin.forward(domain, level.numbers[g][name], level.shifts[g][block, j])
                assert values[key] == pytest.approx(value.item(), rel=tolerance, abs=1e-14), key
        level, k = level.above, k + 1


@pytest.mark.parametrize(("rule", "numbers", "switches", "per", "kind", "horizon"), LEARNED)
def test_every_hyperparameter_against_the_twin(rule, numbers, switches, per, kind, horizon):
    problem, step_size = Problem(shapes=shapes_of(rule)), 1e-3 if kind == "exact" else 0.02
    learn = tuple(name for name in CLASSES[rule].rule.hyperparameters if name in numbers)
    above = twin.Level("sgd", [DEFAULTS["sgd"] | {"lr": step_size}] * 2)
    bottom = twin_of(rule, numbers, switches, 0.03, learn=learn, per=per, kind=kind, horizon=horizon, above=above)
    parameters = problem.parameters()
    optimizer = CLASSES[rule](
        groups_of(parameters, {"lr": 0.03}),
        **settings(rule, numbers),
        **switches,
        learn="all",
        per=per,
        hypergradient=kind,
        horizon=horizon,
        optimizer=gdtuo.SGD(lr=step_size),
    )
    # centred RMSProp's first step divides by the root of rounding noise, which no two programs share
    tolerance = 1e-7 if switches.get("centered") else 1e-10
    steps = 9 if rule == "radam" else 6  # rectified from its sixth step on
    run(problem, bottom, optimizer, parameters, steps, tolerance)


def upper_twins(levels: list, groups: int = 2) -> twin.Level | None:
    """Twins of levels above the first, bottom up, from (rule, numbers, options)."""
    above = None
    for rule, numbers, options in reversed(levels):
        above = twin.Level(rule, [DEFAULTS[rule] | numbers] * groups, above=above, **options)
    return above


def upper_levels(levels: list) -> gdtuo.Level | None:
    above = None
    for rule, numbers, options in reversed(levels):
        keywords = {"hypergradient": options["kind"], "horizon": options.get("horizon", 1)} if "kind" in options else {}
        above = CLASSES[rule](
            **settings(rule, numbers),
            **options.get("switches", {}),
            **({"learn": options["learn"], "domains": {"lr": gdtuo.Positive(maximum=0.2)}} if "learn" in options else {}),
            **keywords,
            optimizer=above,
        )
    return above


ADAM = {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
LR_CAP = {"maximum": {"lr": 0.2}}
TOWERS = {
    "sgd": [("sgd", {"lr": 1e-3}, {"learn": ("lr",), "kind": "exact", **LR_CAP}), ("sgd", {"lr": 1e-3}, {})],
    "momentum": [
        ("sgd", {"lr": 1e-3, "momentum": 0.5}, {"learn": ("lr", "momentum"), "kind": "exact", **LR_CAP}),
        ("adam", ADAM, {}),
    ],
    "adam-adam": [
        ("adam", ADAM, {"learn": ("lr", "beta1", "beta2", "eps"), "kind": "exact", **LR_CAP}),
        ("adam", ADAM, {"learn": ("lr", "beta1"), "kind": "cosine", **LR_CAP}),
        ("rmsprop", {"lr": 1e-3, "alpha": 0.9, "eps": 1e-3}, {}),
    ],
    "horizon": [
        ("adagrad", {"lr": 0.02, "eps": 1e-3}, {"learn": ("lr",), "kind": "cosine", "horizon": 4, **LR_CAP}),
        ("adamw", {**ADAM, "weight_decay": 0.1}, {"learn": ("lr", "weight_decay"), "kind": "exact", "horizon": 2, **LR_CAP}),
        ("sgd", {"lr": 1e-3}, {}),
    ],
    "nadam-radam-lion": [
        ("nadam", {**ADAM, "momentum_decay": 0.1}, {"learn": ("lr", "beta1", "momentum_decay"), "kind": "exact", **LR_CAP}),
        ("radam", ADAM, {"learn": ("lr", "beta2", "eps"), "kind": "cosine", **LR_CAP}),
        ("lion", {"lr": 1e-3}, {}),
    ],
    "capped": [("sgd", {"lr": 0.19}, {"learn": ("lr",), "kind": "cosine", **LR_CAP}), ("sgd", {"lr": 0.1}, {})],
}


@pytest.mark.parametrize("per", ["group", "tensor", "element"])
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("kind", ["exact", "cosine"])
def test_tall_towers_against_the_twin(tower, kind, per):
    levels = [(rule, numbers, dict(options)) for rule, numbers, options in TOWERS[tower]]
    problem, (rule, numbers, switches) = Problem(1), CASES[5]
    learn = tuple(numbers)
    bottom = twin_of(rule, numbers, switches, 0.03, learn=learn, per=per, kind=kind, above=upper_twins(levels))
    parameters = problem.parameters()
    optimizer = gdtuo.Adam(
        groups_of(parameters, {"lr": 0.03}),
        **settings(rule, numbers),
        learn="all",
        per=per,
        hypergradient=kind,
        optimizer=upper_levels(levels),
    )
    assert optimizer.height == len(levels)
    run(problem, bottom, optimizer, parameters, 10, 1e-9)


def learned_per_element_above():
    return gdtuo.SGD(lr=0.01, momentum=0.3, learn=("lr", "momentum"), per="element", optimizer=gdtuo.SGD(lr=0.05))


@pytest.mark.parametrize("kind", ["exact", "cosine"])
def test_upper_levels_learned_per_element_against_the_twin(kind):
    problem, (rule, numbers, _) = Problem(2), CASES[5]
    top = twin.Level("sgd", [DEFAULTS["sgd"] | {"lr": 0.05}] * 2)
    middle = twin.Level(
        "sgd", [DEFAULTS["sgd"] | {"lr": 0.01, "momentum": 0.3}] * 2, ("lr", "momentum"), "element", "cosine", above=top, **LR_CAP
    )
    bottom = twin_of(rule, numbers, {}, 0.03, learn=tuple(numbers), kind=kind, above=middle)
    parameters = problem.parameters()
    bottom.start([list(group) for group in problem.start])
    optimizer = gdtuo.Adam(
        groups_of(parameters, {"lr": 0.03}),
        **settings(rule, numbers),
        learn="all",
        hypergradient=kind,
        optimizer=learned_per_element_above(),
    )
    for t in range(8):
        bottom.step(problem.gradients(bottom.tensors, t))
        for p in (p for group in parameters for p in group):
            p.grad = None
        problem.loss(parameters, t).backward()
        optimizer.step()
        values = optimizer.hyperparameters()
        for g in range(2):
            for i, below in enumerate(numbers):
                for j, name in enumerate(("lr", "momentum")):
                    expected = twin.forward(twin.DOMAINS[name], middle.numbers[g][name], middle.shifts[g][i, j])
                    assert values[f"L1/g{g}/{name}/{below}"] == pytest.approx(expected.item(), rel=1e-9)
                expected = twin.forward(twin.DOMAINS[below], bottom.numbers[g][below], bottom.shifts[g][0, i])
                assert values[f"L0/g{g}/{below}"] == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.usefixtures("numbers_of_64_bits")
@pytest.mark.parametrize("step", [1, 2, 5])
@ELSEWHERE
def test_exact_against_central_differences_of_torch(rule, numbers, switches, step):
    """dL/dθ after the last of `step` updates, the differences taken on torch's own optimizers."""
    if switches.get("centered") and step == 1:
        step = 3  # its first step divides by the root of rounding noise
    if rule == "radam" and step == 5:
        step = 8  # rectified
    problem = Problem(3)
    parameters = problem.parameters()
    optimizer = CLASSES[rule](
        groups_of(parameters, {"lr": 0.03}),
        **settings(rule, numbers),
        **switches,
        learn="all",
        hypergradient="exact",
        optimizer=gdtuo.SGD(lr=0.0),
    )
    reference = problem.parameters()
    theirs = PAIRS[rule].theirs(groups_of(reference, {"lr": 0.03}), **settings(rule, numbers), **switches)
    for t in range(step):
        for some in (parameters, reference):
            for p in (p for group in some for p in group):
                p.grad = None
            problem.loss(some, t).backward()
        if t < step - 1:
            theirs.step()
        optimizer.step()
    for p in (p for group in parameters for p in group):
        p.grad = None
    problem.loss(parameters, step).backward()
    found = optimizer.hypergradients()

    def loss_after(group: int, name: str, value: float) -> float:
        last = copy.deepcopy(theirs)
        settings_of = last.param_groups[group]
        if name in ("beta1", "beta2", "eps2"):
            both = list(settings_of["eps" if name == "eps2" else "betas"])
            both[name != "beta1"] = value
            settings_of["eps" if name == "eps2" else "betas"] = tuple(both)
        else:
            settings_of[name] = value
        for mine, original in zip(last.param_groups, theirs.param_groups, strict=True):
            for p, q in zip(mine["params"], original["params"], strict=True):
                p.grad = q.grad.clone()
        last.step()
        return problem.loss([g["params"] for g in last.param_groups], step).item()

    assert len(found) == 2 * len(numbers)
    for group in range(2):
        for name, value in numbers.items():
            value = 0.03 if (name == "lr" and group) else value
            h = 1e-3 * value if name == "eps" else 1e-4 * min(abs(value), abs(1 - value))
            difference = (loss_after(group, name, value + h) - loss_after(group, name, value - h)) / (2 * h)
            absolute = 1e-6 * abs(loss_after(group, name, value))
            assert found[f"L0/g{group}/{name}"] == pytest.approx(difference, rel=1e-6, abs=absolute), (group, name)


@pytest.mark.parametrize(("rule", "per", "kind", "horizon"), DEAD)
def test_dead_units_give_finite_values(rule, kind, horizon, per):
    """g = 0 and v = 0 from the start for half of the weights, then for all."""
    if per == "element" and not CLASSES[rule].rule.elementwise:
        per = "tensor"
    numbers, switches = next((n, s) for r, n, s in reversed(CASES) if r == rule)
    w = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    optimizer = CLASSES[rule](
        [w],
        **settings(rule, {k: v for k, v in numbers.items() if k != "weight_decay"}),
        **switches,
        learn=tuple(k for k in numbers if k != "weight_decay"),
        per=per,
        hypergradient=kind,
        horizon=horizon,
        optimizer=gdtuo.Adam(learn="all", optimizer=gdtuo.SGD()),
    )
    for t in range(8):
        w.grad = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64) * (t < 5)
        optimizer.step()
        assert all(abs(h) < float("inf") for h in optimizer.hypergradients().values())
    assert optimizer.skipped == 0
    assert w.isfinite().all()
    assert optimizer.hyperparameters()["L0/g0/lr" + {"group": "", "tensor": "/0", "element": "/mean"}[per]] != numbers["lr"]


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_adams_betas_after_the_first_update_have_cosine_zero(per):
    """m̂ = g and v̂ = g² whatever the betas: the derivative vanishes identically, what remains is rounding."""
    for dtype in (torch.float64, torch.float32):
        w = torch.nn.Parameter(torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(0)))
        optimizer = gdtuo.Adam([w], per=per, learn=("lr", "betas"), optimizer=gdtuo.SGD())
        for _ in range(2):
            optimizer.zero_grad()
            w.square().sum().backward()
            optimizer.step()
        found = optimizer.hypergradients()
        betas = [value for key, value in found.items() if "beta" in key]
        assert betas == [0.0, 0.0]
        first = torch.randn(1000, dtype=dtype, generator=torch.Generator().manual_seed(0))
        # the first update is lr · sign(w) and hardly changes the gradient 2 w
        expected = -(first.abs().sum() / (1000**0.5 * first.norm())).item()
        assert [value for key, value in found.items() if "lr" in key] == [pytest.approx(expected, rel=1e-3)]


@CLOSED
def test_closed_form_equals_derivation(rule, numbers, switches):
    """`replay` against forward-mode differentiation of `update`, after several updates."""
    from gdtuo.pullback import derive

    algorithm = CLASSES[rule].rule(**{k: switches.get(k, v) for k, v in CLASSES[rule].rule.switches().items()})
    rng = torch.Generator().manual_seed(4)
    w = torch.randn(50, generator=rng, dtype=torch.float64)
    hyper = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    learned, state = tuple(numbers), algorithm.init(w, tuple(numbers))
    for step in range(1, 9):
        g = torch.randn(50, generator=rng, dtype=torch.float64)
        g[:5] = 0.0
        delta, tangents, after = derive(algorithm, learned, w, g, state, hyper, step)
        again, closed = algorithm.replay(learned, w, g, after, hyper, step)
        torch.testing.assert_close(again, delta, rtol=1e-12, atol=1e-15)
        if step > 1 or not switches.get("centered"):
            for name, a, b in zip(learned, tangents, closed, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
        # what `remembers` leaves out must not matter
        for name in learned:
            needs = algorithm.remembers((name,), tuple(numbers))
            empty = torch.empty(0, dtype=torch.float64)
            _, (alone,) = algorithm.replay(
                (name,), w if "weights" in needs else empty, g if "gradient" in needs else empty, after, hyper, step
            )
            torch.testing.assert_close(alone, closed[learned.index(name)], rtol=1e-12, atol=1e-15)
        w, state = w + delta, after
