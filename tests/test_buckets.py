"""However weights are laid out and cut, the same training gives the same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from cases import ONE_UPDATE, Drift, DriftRule
from torch import Tensor

import gdtuo
from gdtuo.large import LargeBucket
from gdtuo.small import SmallBucket
from gdtuo.whole import WholeBucket

F64 = torch.float64
SHAPES = [[(3,), (5, 4), (), (130,), (2, 3, 7)], [(17,), (20, 10), (1,)]]

#: gdtuo.small.LARGEST, gdtuo.large.BLOCK, gdtuo.pieces.DIRECT
LAYOUTS = {
    "small": (10**6, 10**6, 10**6),
    "one block": (0, 10**6, 10**6),
    "direct pieces": (0, 64, 16),
    "gathered pieces": (0, 64, 10**6),
    "all direct, one block each": (0, 10**6, 1),
    "blocks of 7": (0, 7, 18),
}


@pytest.fixture
def laid_out(monkeypatch) -> Callable[[str], None]:
    def choose(layout: str) -> None:
        small, block, direct = LAYOUTS[layout]
        monkeypatch.setattr("gdtuo.small.LARGEST", small)
        monkeypatch.setattr("gdtuo.large.BLOCK", block)
        monkeypatch.setattr("gdtuo.pieces.DIRECT", direct)

    return choose


def branching(level: type[gdtuo.Level]) -> type[gdtuo.Level]:
    """The same optimizer, whose rule looks at the count of updates: no kernel can be recorded."""

    class Rule(level.rule):
        def update(self, weights, gradient, state, hyper, step):
            assert isinstance(step, int) or not step > 10**6
            return super().update(weights, gradient, state, hyper, step)

    return type(f"Branching{level.__name__}", (level,), {"rule": Rule})


def unflattened(level: type[gdtuo.Level]) -> type[gdtuo.Level]:
    """The same optimizer, whose rule says that it is not elementwise."""
    return type(f"Whole{level.__name__}", (level,), {"rule": type("Rule", (level.rule,), {"elementwise": False})})


class CorrectedRule(gdtuo.Rule):
    """Momentum without the bias of its start: 1 - the product of all momenta so far, which is one number a parameter."""

    hyperparameters = {"lr": (1e-2, gdtuo.Positive()), "momentum": (0.9, gdtuo.UnitInterval())}
    direct = frozenset(("lr",))
    uniform = frozenset(("product",))
    closed_form = True

    def init(self, weights, hyper):
        return {"product": torch.ones_like(weights), "mean": torch.zeros_like(weights)}

    def update(self, weights, gradient, state, hyper, step):
        product = hyper["momentum"] * state["product"]
        mean = hyper["momentum"] * state["mean"] + (1 - hyper["momentum"]) * gradient
        return (-hyper["lr"] / (1 - product)) * mean, {"product": product, "mean": mean}

    def remembers(self, learned, hyper):
        return frozenset(("gradient",) if "momentum" in learned else ())

    def replay(self, learned, weights, gradient, state, hyper, step):
        lr, momentum, product, mean = hyper["lr"], hyper["momentum"], state["product"], state["mean"]

        def derivative(name):
            if name == "lr":
                return (-1 / (1 - product)) * mean
            # the mean before the update was (m - (1 - μ) g) / μ, the product Π / μ
            return (-lr / momentum / (1 - product)) * (mean - gradient) - (lr / momentum * product / (1 - product) ** 2) * mean

        return (-lr / (1 - product)) * mean, [derivative(name) for name in learned]


class Corrected(gdtuo.Level):
    rule = CorrectedRule


RULES = {
    "sgd": (gdtuo.SGD, {"lr": 0.05, "momentum": 0.8}, ("lr", "momentum")),
    "adam": (gdtuo.Adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2}, ("lr", "betas", "eps")),
    "adamw": (gdtuo.AdamW, {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-2}, ("lr", "weight_decay")),
    "adamw, lr alone": (gdtuo.AdamW, {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-2}, ("lr",)),
    "rmsprop": (gdtuo.RMSProp, {"lr": 0.01, "alpha": 0.9, "momentum": 0.5, "eps": 1e-2}, ("lr", "alpha", "momentum")),
    "drift": (Drift, {"lr": 0.02, "momentum": 0.7}, ("lr", "momentum")),
    "corrected": (Corrected, {"lr": 0.02, "momentum": 0.7}, ("lr", "momentum")),
}


def parameters(shapes: Sequence[Sequence[tuple]] = SHAPES, dtype: torch.dtype = F64) -> list[list[torch.nn.Parameter]]:
    rng = torch.Generator().manual_seed(0)
    return [[torch.nn.Parameter(torch.randn(s, generator=rng, dtype=dtype)) for s in group] for group in shapes]


def gradients(tensors: Sequence[Tensor], t: int) -> list[Tensor]:
    """Of a smooth random loss, another at each step: Σ a (w - c)² / 2 - cos w."""
    rng = torch.Generator().manual_seed(100 + t)
    found = []
    for w in tensors:
        a, c = (torch.rand(w.shape, generator=rng, dtype=F64) + 0.1 for _ in range(2))
        w = w.detach().contiguous()
        found.append((a * (w - 2 * c) + w.sin()).to(w.dtype))
    return found


def train(level: type[gdtuo.Level], settings: dict, steps: int, groups=None, grads=gradients, **options) -> tuple:
    """[steps] of all weights, and of all hyperparameters; and the optimizer."""
    groups = parameters() if groups is None else groups
    described = [{"params": group, "lr": settings["lr"] * (1 + g)} for g, group in enumerate(groups)]
    optimizer = level(described, **settings, **options, optimizer=gdtuo.SGD(lr=0.05))
    flat = [p for group in groups for p in group]
    weights, numbers = [], []
    for t in range(steps):
        for p, gradient in zip(flat, grads(flat, t), strict=True):
            p.grad = gradient
        optimizer.step()
        weights.append(torch.cat([torch.view_as_real(p).flatten() if p.is_complex() else p.flatten() for p in flat]).detach())
        numbers.append(torch.tensor(list(optimizer.hyperparameters().values()), dtype=F64))
    return torch.stack(weights), torch.stack(numbers), optimizer


def bucket_types(optimizer: gdtuo.Level) -> set[type]:
    return {type(bucket) for bucket in optimizer._parts.engines[0]._buckets}


def same(ours: tuple, theirs: tuple, tolerance: float = 1e-10) -> None:
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("per", ["group", "tensor", "element"])
@pytest.mark.parametrize("rule", RULES)
def test_every_layout_trains_alike(rule, per, horizon, laid_out):
    level, settings, learn = RULES[rule]
    options = {"learn": learn, "per": per, "horizon": horizon}
    found = {}
    for layout in LAYOUTS:
        laid_out(layout)
        found[layout] = train(level, settings, 8, **options)
        small = layout == "small" and per != "element" and rule != "drift" and (horizon > 1 or rule != "corrected")
        assert bucket_types(found[layout][2]) == {SmallBucket if small else LargeBucket}
    found["branching"] = train(branching(level), settings, 8, **options)
    assert bucket_types(found["branching"][2]) == {WholeBucket}
    if per != "element":
        found["whole"] = train(unflattened(level), settings, 8, **options)
        assert bucket_types(found["whole"][2]) == {WholeBucket}
    learned = found["whole" if per != "element" else "branching"]
    changed = zip(learned[2].hyperparameters(), (learned[1][-1] != learned[1][0]).tolist(), strict=True)
    names = {name for chosen in learn for name in {"betas": ("beta1", "beta2")}.get(chosen, (chosen,))}
    assert {key.split("/")[2] for key, moved in changed if moved and key.startswith("L0")} == names
    for layout in found:
        same(found[layout], learned)


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw", "adamw, lr alone"])
def test_kernels_of_torch_train_alike(rule, horizon, laid_out, monkeypatch):
    """They do the updates where there is one group."""
    level, settings, learn = RULES[rule]
    done = []

    def native(self, *args):
        done.append(original(self, *args))
        return done[-1]

    original = level.rule.native
    learned = train(branching(level), settings, 8, parameters([[*SHAPES[0], *SHAPES[1]]]), learn=learn, horizon=horizon)
    monkeypatch.setattr(level.rule, "native", native)
    for layout in LAYOUTS:
        laid_out(layout)
        done.clear()
        same(train(level, settings, 8, parameters([[*SHAPES[0], *SHAPES[1]]]), learn=learn, horizon=horizon), learned)
        longer = layout in ("gathered pieces", "blocks of 7")  # than a block, and not worked on where they stand
        assert len(done) >= (0 if longer and horizon > 1 else 8)
        assert all(done)


class DelayedRule(gdtuo.Rule):
    """Goes where the gradients pointed before the last: the update is a multiple of a state that it overwrites."""

    hyperparameters = {"lr": (1e-2, gdtuo.Positive())}

    def init(self, weights, hyper):
        return {"direction": torch.zeros_like(weights)}

    def update(self, weights, gradient, state, hyper, step):
        return -hyper["lr"] * state["direction"], {"direction": 0.5 * state["direction"] + gradient}


class Delayed(gdtuo.Level):
    rule = DelayedRule


@pytest.mark.parametrize("per", ["group", "tensor"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", [*RULES, "delayed"])
def test_the_length_of_an_update_is_what_the_weights_moved(rule, layout, per, laid_out):
    laid_out(layout)
    level, settings, learn = RULES.get(rule, (Delayed, {"lr": 0.02}, ("lr",)))
    groups = parameters()
    moves = train(level, settings, 6, groups, learn=learn, per=per, horizon=3, trust=1e6)
    squares = (moves[0][-1] - moves[0][-2]).square().split([p.numel() for group in groups for p in group])
    found = moves[2]._parts.engines[0].ladder.store["L0/last"][:, -1]
    torch.testing.assert_close(found, torch.stack([x.sum() for x in squares]), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("rule", RULES)
def test_pieces_are_what_their_layout_says(rule, laid_out):
    """Otherwise the layouts above would test one and the same thing."""
    level, settings, learn = RULES[rule]
    counts = {}
    for layout in LAYOUTS.keys() - {"small"}:
        laid_out(layout)
        optimizer = train(level, settings, 2, learn=learn, horizon=3)[2]
        (bucket,) = optimizer._parts.engines[0]._buckets
        pieces = [piece for some in bucket._pieces.values() for piece in some]
        blocks = sum(len(prepared.cuts) for piece in pieces for prepared in list(piece.prepared.values())[:1])
        counts[layout] = (len(pieces), sum(piece.direct for piece in pieces), blocks)
    assert counts["one block"] == (1, 0, 1)
    assert counts["all direct, one block each"] == (8, 8, 8)
    assert counts["direct pieces"][1] == 5
    assert counts["direct pieces"][2] == counts["direct pieces"][0] + 2 + 3  # 130 and 200 weights in blocks of 64
    assert counts["gathered pieces"][1] == 0
    assert counts["gathered pieces"][2] == counts["gathered pieces"][0] + 2 + 3
    assert counts["blocks of 7"][2] > 50


# ---------------------------------------------------------------- memory formats


def matched(make: Callable[[Tensor], Tensor]) -> tuple[list, list]:
    """The same weights, contiguous and not."""
    shapes = [(2, 3, 5, 4), (3, 2, 4, 4), (2, 2, 2, 3)]
    plain = parameters([shapes[:2], shapes[2:]])
    return plain, [[torch.nn.Parameter(make(p.detach())) for p in group] for group in plain]


FORMATS = {
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "strided": lambda x: torch.stack((x, x + 1), -1)[..., 0],
}


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("per", ["group", "tensor", "element"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMATS)
def test_memory_formats(form, layout, per, horizon, laid_out):
    laid_out(layout)
    level, settings, learn = RULES["adamw"]
    plain, formed = matched(FORMATS[form])
    assert not any(p.is_contiguous() for group in formed for p in group)
    options = {"learn": learn, "per": per, "horizon": horizon}
    expected = train(level, settings, 6, plain, **options)
    same(train(level, settings, 6, formed, **options), expected)

    def format_of_its_own(flat, t):
        return [FORMATS[form](x) for x in gradients(flat, t)]

    again = [[torch.nn.Parameter(p.detach().clone()) for p in group] for group in matched(FORMATS[form])[0]]
    same(train(level, settings, 6, again, format_of_its_own, **options), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_complex_numbers_are_pairs(rule, layout, laid_out):
    laid_out(layout)
    level, settings, learn = RULES[rule]
    pairs = parameters([[(3, 5, 2), (2,)], [(40, 2)]])
    complexes = [[torch.nn.Parameter(torch.view_as_complex(p.detach().clone())) for p in group] for group in pairs]

    def complex_gradients(flat, t):
        real = gradients([torch.view_as_real(p.detach()) for p in flat], t)
        return [torch.view_as_complex(x) for x in real]

    expected = train(level, settings, 6, pairs, learn=learn)
    same(train(level, settings, 6, complexes, complex_gradients, learn=learn), expected)


@pytest.mark.parametrize("fused", [False, None])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_format_that_changes_in_mid_run(layout, fused, laid_out):
    laid_out(layout)
    level, settings, learn = RULES["adam"]
    plain, changing = matched(torch.clone)
    flat = [p for group in changing for p in group]

    def change(some, t):
        if some is not None and t == 3:
            for p in flat:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
        if t == 6:
            flat[0].data = flat[0].data.contiguous()
        return gradients(some, t)

    expected = train(level, settings, 9, plain, learn=learn, fused=fused)
    same(train(level, settings, 9, changing, change, learn=learn, fused=fused), expected)


# ---------------------------------------------------------------- rules that branch


class WarmRule(DriftRule):
    def update(self, weights, gradient, state, hyper, step):
        delta, after = super().update(weights, gradient, state, hyper, step)
        return (0.5 * delta if step < 4 else delta), after


class StraightRule(DriftRule):
    def update(self, weights, gradient, state, hyper, step):
        delta, after = super().update(weights, gradient, state, hyper, step)
        return (1 - 0.5 * (step < 4)) * delta, after


class Warm(gdtuo.Level):
    rule = WarmRule


class Straight(gdtuo.Level):
    rule = StraightRule


@pytest.mark.parametrize("per", ["group", "tensor", "element"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_rule_that_branches_on_the_step(per, horizon):
    settings, options = RULES["drift"][1], {"learn": "all", "per": per, "horizon": horizon}
    branched, straight = train(Warm, settings, 8, **options), train(Straight, settings, 8, **options)
    assert bucket_types(branched[2]) == {WholeBucket}
    assert bucket_types(straight[2]) == {LargeBucket}
    same(branched, straight)
    drift = train(Drift, settings, 8, **options)
    assert (drift[0][0] - branched[0][0]).abs().max() > 1e-3


# ---------------------------------------------------------------- gradients that come and go


@pytest.mark.parametrize(
    ("rule", "per", "horizon"),
    [("sgd", "group", 1), ("sgd", "tensor", 1), ("adam", "tensor", 1), ("adam", "group", 3), ("corrected", "group", 1)],
)
def test_gradients_come_and_go(rule, per, horizon, laid_out):
    level, settings, learn = RULES[rule]
    shapes = [[(3 + 7 * i % 20,) for i in range(9)], [(4,), (70,), (5, 5)] * 3]

    def some(flat, t):
        chosen = random.Random(t)
        return [g if chosen.random() < 0.7 else None for g in gradients(flat, t)]

    options = {"learn": learn, "per": per, "horizon": horizon}
    found = {}
    for layout in ("small", "direct pieces", "gathered pieces", "one block"):
        laid_out(layout)
        found[layout] = train(level, settings, 100, parameters(shapes), some, **options)
        for bucket in found[layout][2]._parts.engines[0]._buckets:
            for cache, limit in {"_plans": 64, "_segments": 64, "_pieces": 64, "_listed": 64, "_shaped": 256}.items():
                assert len(getattr(bucket, cache, ())) <= limit, (layout, cache)
    whole = train(unflattened(level), settings, 100, parameters(shapes), some, **options)
    for layout in found:
        same(found[layout], whole, 1e-8)


def test_two_buckets_share_a_workspace(laid_out):
    """Groups with and without weight decay stand in two buckets; the second is the larger one."""

    def trained(level):
        groups = parameters([[(2,), (1,)], [(9,), (3,)]])
        described = [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.1}]
        optimizer = level(described, lr=0.1, per="tensor", optimizer=gdtuo.SGD(lr=0.05))
        flat = [p for group in groups for p in group]
        for t in range(5):
            for p, gradient in zip(flat, gradients(flat, t), strict=True):
                p.grad = gradient
            optimizer.step()
        return torch.cat([p.detach() for p in flat]), torch.tensor(list(optimizer.hyperparameters().values()), dtype=F64)

    expected = trained(unflattened(gdtuo.SGD))
    for layout in LAYOUTS:
        laid_out(layout)
        same(trained(gdtuo.SGD), expected)


# ---------------------------------------------------------------- torch's own kernels

NATIVE = {
    "sgd": (gdtuo.SGD.rule(), {"lr": 0.1}),
    "momentum": (gdtuo.SGD.rule(), {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "nesterov": (gdtuo.SGD.rule(nesterov=True, maximize=True), {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "adam": (gdtuo.Adam.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}),
    "amsgrad": (gdtuo.Adam.rule(amsgrad=True), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    "maximize": (gdtuo.Adam.rule(maximize=True), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    "adamw": (gdtuo.AdamW.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1}),
    "adamw, amsgrad": (
        gdtuo.AdamW.rule(amsgrad=True, maximize=True),
        {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "adamw without decay": (gdtuo.AdamW.rule(), {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}),
    "adagrad": (gdtuo.AdaGrad.rule(initial_accumulator_value=0.1), {"lr": 0.1, "eps": 1e-3}),
    "adagrad, decaying": (gdtuo.AdaGrad.rule(maximize=True), {"lr": 0.1, "lr_decay": 0.2, "weight_decay": 0.1, "eps": 1e-3}),
}


@pytest.mark.parametrize("name", NATIVE)
def test_torchs_own_kernels(name):
    rule, numbers = NATIVE[name]
    ours = [p.detach() for p in parameters(SHAPES[:1])[0]]
    theirs = [w.clone() for w in ours]
    states = [rule.init(w, numbers) for w in ours]
    lists = {key: [state[key].clone() for state in states] for key in states[0]}
    steps = [torch.zeros(()) for _ in ours]
    for t in range(25):
        for step in steps:
            step += 1
        found = gradients(ours, t)
        assert rule.native(theirs, found, lists, numbers, steps)
        for i, g in enumerate(found):
            delta, states[i] = rule.update(
                ours[i], g, states[i], {k: torch.tensor(v, dtype=F64) for k, v in numbers.items()}, t + 1
            )
            ours[i] = ours[i] + delta
            torch.testing.assert_close(theirs[i], ours[i], rtol=1e-12, atol=1e-12)
            for key, value in states[i].items():
                torch.testing.assert_close(lists[key][i], value, rtol=1e-12, atol=1e-12)
    assert [step.item() for step in steps] == [25.0] * len(steps)


@pytest.mark.parametrize("name", [name for name, (_, numbers) in NATIVE.items() if "eps" in numbers])
def test_torchs_own_kernels_are_not_used_where_they_give_nan(name):
    rule, numbers = NATIVE[name]
    w, zero = torch.ones(3, dtype=F64), torch.zeros(3, dtype=F64)
    state = {key: [value] for key, value in rule.init(w, numbers).items()}
    before = {key: value[0].clone() for key, value in state.items()}
    assert not rule.native([w], [zero], state, numbers | {"eps": 0.0}, [torch.ones(())])
    assert w.tolist() == [1.0, 1.0, 1.0]
    assert all(torch.equal(state[key][0], before[key]) for key in state)


# ---------------------------------------------------------------- extremes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_in_one_group_stays_there(layout, laid_out):
    laid_out(layout)
    settings, options = {"lr": 0.05}, {"learn": "lr", **ONE_UPDATE}

    def poisoned(flat, t):
        found = gradients(flat, t)
        if t == 3:
            found[6][0, 0] = torch.nan
        return [x.nan_to_num() if t != 3 else x for x in found]

    weights, numbers, optimizer = train(gdtuo.SGD, settings, 8, grads=poisoned, **options)
    clean = train(gdtuo.SGD, settings, 8, **options)
    assert optimizer.skipped == 2  # with that gradient, and with the update that it made
    first = sum(p.numel() for p in parameters()[0])
    torch.testing.assert_close(weights[:, :first], clean[0][:, :first], rtol=1e-10, atol=1e-10)
    mine, other = (list(optimizer.hyperparameters()).index(f"L0/g{g}/lr") for g in range(2))
    torch.testing.assert_close(numbers[:, mine], clean[1][:, mine], rtol=1e-10, atol=1e-10)
    lr = numbers[:, other]
    assert lr.isfinite().all()
    assert lr[2] == lr[3] == lr[4]
    assert lr[1] != lr[2]
    assert lr[4] != lr[5]


@pytest.mark.parametrize("kind", ["exact", "cosine"])
@pytest.mark.parametrize("layout", ["small", "direct pieces"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("lr", "size", "skips"), [(1e-300, 1.0, False), (1e200, 1e200, True), (1e-300, 1e-200, False)])
def test_huge_and_tiny_numbers(rule, layout, kind, lr, size, skips, laid_out):
    laid_out(layout)
    level, settings, learn = RULES[rule]

    def sized(flat, t):
        return [size * (1 + x) for x in gradients([torch.zeros_like(p) for p in flat], t)]

    options = {"learn": learn, "hypergradient": kind}
    _, numbers, optimizer = train(level, {**settings, "lr": lr}, 5, grads=sized, **options)
    assert numbers.isfinite().all()
    if skips and kind == "exact":
        assert optimizer.skipped > 0
    if not skips:
        assert optimizer.skipped == 0


# ---------------------------------------------------------------- what torch's own kernels refuse


@pytest.mark.parametrize("layout", ["small", "direct pieces"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_momentum_of_zero(horizon, layout, laid_out):
    """A tensor that is written through 0; torch's fused kernel would raise."""
    laid_out(layout)
    ours, theirs = parameters([[(130,), (3,)]])[0], parameters([[(130,), (3,)]])[0]
    momentum = torch.tensor(0.5, dtype=F64)
    optimizer = gdtuo.SGD(ours, lr=0.05, momentum=momentum, horizon=horizon, trust=float("inf"), optimizer=gdtuo.SGD(lr=0.0))
    buffers = [torch.zeros_like(p) for p in theirs]
    for t, value in enumerate((0.5, 0.0, 0.0, 0.5)):
        momentum.fill_(value)
        for p, q, buffer, gradient in zip(ours, theirs, buffers, gradients(ours, t), strict=True):
            p.grad = gradient
            buffer.mul_(value).add_(gradient)
            q.data -= 0.05 * buffer
        optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("horizon", [1, 3])
def test_gradients_that_only_look_plain(horizon):
    """Negated ones whose numbers are those of another tensor, and, with an eps that float32 does not have, dead weights."""
    p, q = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    one, two = (gdtuo.Adam([w], lr=0.1, eps=1e-50, horizon=horizon, optimizer=gdtuo.SGD()) for w in (p, q))
    for t in range(3):
        number = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]) * (1 + t)
        p.grad, q.grad = torch.complex(number, -number).conj().imag, number
        assert p.grad.is_neg()
        one.step()
        two.step()
    assert torch.equal(p, q)
    assert p[0] == 1.0
    assert one.hyperparameters() == two.hyperparameters()
