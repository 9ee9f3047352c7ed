"""`fused=True` on the CPU: compiled kernels against the same tower in eager mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
import torch._inductor.config
from cases import Drift, DriftRule
from torch import Tensor

import gdtuo
from gdtuo.fused import Compiled

F64, F32, B16 = torch.float64, torch.float32, torch.bfloat16
SIZES = [[333, 10], [(8, 25), 128]]  # rows of 64: five and a tail of 13, a small one; three and a tail of 8, two and none


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    # (pytest's own way to set a number of torch's configuration would take it away afterwards)
    with pytest.MonkeyPatch.context() as patch, torch._inductor.config.patch(compile_threads=1):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Small tensors are cut as large ones are."""
    monkeypatch.setattr("gdtuo.small.LARGEST", 0)
    monkeypatch.setattr("gdtuo.fused.ROW", 64)
    monkeypatch.setattr("gdtuo.large.ROW", 64)
    monkeypatch.setattr("gdtuo.large.BLOCK", 256)
    monkeypatch.setattr("gdtuo.pieces.DIRECT", 64)


@pytest.fixture
def ran(monkeypatch) -> list[int]:
    """The number of rows of each compiled kernel that has run."""
    rows, run = [], Compiled.run

    def counted(self, arrays, factors):
        result = run(self, arrays, factors)
        if result is not None:
            rows.append(len(arrays[0]))
        return result

    monkeypatch.setattr(Compiled, "run", counted)
    return rows


def parameters(dtype: torch.dtype = F64, sizes: Sequence = SIZES) -> list[list[torch.nn.Parameter]]:
    rng = torch.Generator().manual_seed(0)
    return [[torch.nn.Parameter(torch.randn(s, generator=rng, dtype=F64).to(dtype)) for s in group] for group in sizes]


def gradients(tensors: Sequence[Tensor], t: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(100 + t)
    found = []
    for w in tensors:
        a, c = (torch.rand(w.shape, generator=rng, dtype=F64) + 0.1 for _ in range(2))
        found.append((a * (w.detach().double() - 2 * c) + w.detach().double().sin()).to(w.dtype))
    return found


def steps(optimizer: torch.optim.Optimizer, span: range) -> None:
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    for t in span:
        for p, gradient in zip(flat, gradients(flat, t), strict=True):
            p.grad = gradient
        optimizer.step()


def weights(optimizer: torch.optim.Optimizer) -> Tensor:
    return torch.cat([p.detach().flatten() for group in optimizer.param_groups for p in group["params"]])


def numbers(optimizer: gdtuo.Level) -> Tensor:
    return torch.tensor(list(optimizer.hyperparameters().values()), dtype=F64)


def tower(level: type[gdtuo.Level], fused: bool, groups: list, settings: dict, height: int = 1, **options) -> gdtuo.Level:
    above = gdtuo.SGD(lr=0.05)
    for _ in range(height - 1):
        above = gdtuo.SGD(lr=0.05, optimizer=above)
    described = [{"params": g, "lr": settings["lr"] * (1 + i), "fused": fused} for i, g in enumerate(groups)]
    return level(described, **settings, **options, optimizer=above)


RULES = {
    "sgd": (gdtuo.SGD, {"lr": 0.05, "momentum": 0.8}),
    "adam": (gdtuo.Adam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2}),
    "adamw": (gdtuo.AdamW, {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-2}),
    "adagrad": (gdtuo.AdaGrad, {"lr": 0.05, "eps": 1e-2}),
    "rmsprop": (gdtuo.RMSProp, {"lr": 0.01, "alpha": 0.9, "eps": 1e-2}),
    "lion": (gdtuo.Lion, {"lr": 0.02, "weight_decay": 0.1}),
    "nadam": (gdtuo.NAdam, {"lr": 0.02, "betas": (0.8, 0.95), "momentum_decay": 0.1, "eps": 1e-2}),
    "radam": (gdtuo.RAdam, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2}),
    "drift": (Drift, {"lr": 0.02, "momentum": 0.7}),
}
TOLERANCE = {F64: 1e-10, F32: 2e-5, B16: 3e-2}

#: a cover: every pair of values occurs
COVER = [
    ("sgd", "lr", "group", "cosine", 1, F64, 1),
    ("sgd", "all", "tensor", "exact", 3, F64, 3),
    ("adam", "lr", "tensor", "cosine", 3, F64, 1),
    ("adam", "all", "group", "exact", 1, F32, 3),
    ("adamw", "lr", "tensor", "exact", 1, F64, 3),
    ("adamw", "all", "group", "cosine", 3, F64, 1),
    ("adagrad", "lr", "group", "exact", 3, F32, 1),
    ("adagrad", "all", "tensor", "cosine", 1, F64, 3),
    ("rmsprop", "lr", "group", "cosine", 1, B16, 3),
    ("rmsprop", "all", "tensor", "exact", 1, F64, 1),
    ("lion", "lr", "tensor", "cosine", 1, F64, 1),
    ("nadam", "all", "group", "cosine", 1, F64, 3),
    ("radam", "all", "tensor", "exact", 1, F64, 1),
    ("drift", "lr", "group", "exact", 1, F32, 3),
    ("drift", "all", "tensor", "cosine", 3, F64, 1),
]


@pytest.mark.parametrize(("rule", "learn", "per", "kind", "horizon", "dtype", "height"), COVER)
def test_compiled_equals_eager(rule, learn, per, kind, horizon, dtype, height, ran):
    level, settings = RULES[rule]
    step = 1e-3 if kind == "exact" else 1.0
    options = {"learn": learn, "per": per, "hypergradient": kind, "horizon": horizon, "height": height}
    fused, eager = (tower(level, flag, parameters(dtype), settings, **options) for flag in (True, False))
    start = numbers(eager)
    for t in range(6):
        for optimizer in (fused, eager):
            steps(optimizer, range(t, t + 1))
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(weights(fused), weights(eager), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(numbers(fused), numbers(eager), rtol=tolerance, atol=tolerance * step)
        for key, value in eager.hypergradients().items():
            assert fused.hypergradients()[key] == pytest.approx(value, rel=10 * tolerance, abs=10 * tolerance), key
    assert Compiled.usable
    assert set(ran) == {5, 3, 2}  # never the small one
    assert len(ran) >= 5 * 3
    assert (numbers(fused) - start).abs().max() > 1e-4


def test_other_sizes_need_no_other_kernel(ran):
    level, settings = RULES["sgd"]
    for sizes in (SIZES, [[64 * 4, 64 * 7 + 1], [64 * 100 + 63]], [[2048], [129]]):
        fused, eager = (tower(level, flag, parameters(F64, sizes), settings) for flag in (True, False))
        with torch._dynamo.config.patch(error_on_recompile=sizes is not SIZES):
            steps(fused, range(4))
        steps(eager, range(4))
        torch.testing.assert_close(weights(fused), weights(eager), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(numbers(fused), numbers(eager), rtol=1e-10, atol=1e-10)
    assert {4, 7, 100, 32, 2} <= set(ran)


def test_without_a_compiler(monkeypatch, ran):
    class Rule(DriftRule):  # of its own: kernels are kept by their rule
        pass

    def compile_nothing(function: Callable, **options) -> Callable:
        def fails(*args):
            raise RuntimeError("no compiler here\nand more")

        return fails

    level = type("Fresh", (gdtuo.Level,), {"rule": Rule})
    monkeypatch.setattr(Compiled, "usable", True)  # restored afterwards
    monkeypatch.setattr(torch, "compile", compile_nothing)
    settings = RULES["drift"][1]
    fused, eager = (tower(level, flag, parameters(), settings, learn="all") for flag in (True, False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps(fused, range(5))
    (warning,) = [w for w in caught if "fused" in str(w.message)]
    assert warning.category is UserWarning
    assert "RuntimeError: no compiler here" in str(warning.message)
    assert "and more" not in str(warning.message)
    assert "g++" in str(warning.message)
    assert "drop fused=True" in str(warning.message)
    assert not Compiled.usable
    assert not ran
    steps(eager, range(5))
    torch.testing.assert_close(weights(fused), weights(eager), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(numbers(fused), numbers(eager), rtol=1e-12, atol=1e-12)
    more = tower(level, True, parameters(), settings, learn="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(more, range(5))
    torch.testing.assert_close(weights(more), weights(eager), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_a_run_moves_between_fused_and_eager(first, ran):
    level, settings = RULES["adam"]
    options = {"learn": "all", "per": "tensor"}
    through = tower(level, first, parameters(), settings, **options)
    steps(through, range(6))
    half = tower(level, first, parameters(), settings, **options)
    steps(half, range(3))
    saved = half.state_dict()
    for i, p in enumerate(p for group in half.param_groups for p in group["params"]):
        assert {"step", "exp_avg", "exp_avg_sq"} <= saved["state"][i].keys()
        for name in ("exp_avg", "exp_avg_sq"):
            assert saved["state"][i][name].shape == p.shape
        assert saved["state"][i]["step"].item() == 3.0
    moved = [[torch.nn.Parameter(p.detach().clone()) for p in group["params"]] for group in half.param_groups]
    other = tower(level, not first, moved, settings, **options)
    other.load_state_dict(saved)
    for group in other.param_groups:
        group["fused"] = not first
    ran.clear()
    steps(other, range(3, 6))
    assert bool(ran) is not first
    torch.testing.assert_close(weights(other), weights(through), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(numbers(other), numbers(through), rtol=1e-10, atol=1e-10)


def test_a_checkpoint_of_torch_goes_on():
    settings = RULES["adam"][1]
    theirs = torch.optim.Adam([{"params": group} for group in parameters()], **settings)
    steps(theirs, range(3))
    mine = [[torch.nn.Parameter(p.detach().clone()) for p in group["params"]] for group in theirs.param_groups]
    ours = gdtuo.Adam([{"params": group} for group in mine], **settings, fused=True)
    ours.load_state_dict(theirs.state_dict())
    for group in ours.param_groups:
        group["fused"] = True
    for optimizer in (ours, theirs):
        steps(optimizer, range(3, 6))
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-10, atol=1e-10)
    for a, b in zip(ours.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("level", "settings"), [RULES["adamw"], (gdtuo.SGD, {"lr": 0.05, "weight_decay": 0.1})], ids=["adamw", "sgd"]
)
def test_what_is_remembered_is_old(level, settings, ran):
    """The weights as they were before the update, not after."""
    optimizer = tower(level, True, parameters(), settings, learn=("lr", "weight_decay"), horizon=1)
    before = weights(optimizer)
    steps(optimizer, range(1))
    assert ran
    states = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    assert torch.equal(torch.cat([state["last_weights"].flatten() for state in states]), before)
    if "last_gradient" in states[0]:
        used = gradients([p for group in parameters() for p in group], 0)
        assert torch.equal(
            torch.cat([state["last_gradient"].flatten() for state in states]), torch.cat([g.flatten() for g in used])
        )
