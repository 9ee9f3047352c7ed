"""All exact methods agree with each other, with one graph of the whole run, and with torch's own optimizers' differences.

For every rule and hyperparameter, with minibatches that differ at every step.
"""

from __future__ import annotations

import pytest
import torch
from cases import NEWER, PAIRS
from problems import ALGORITHMS, F64, Problem, assert_close, leaves_of, unrolled

import gdtuo

pytestmark = pytest.mark.filterwarnings("ignore:.*has no effect:RuntimeWarning")  # on weights that follow a sign
IN_TORCH = {pair.ours: pair for pair in PAIRS.values()}
EXACT = {
    "reverse": gdtuo.Reverse(),
    "reverse, mixed mode": gdtuo.Reverse(products="forward-over-reverse"),
    "checkpointed": gdtuo.Checkpointed(),
    "checkpointed, 3 segments": gdtuo.Checkpointed(3),
    "checkpointed, binary": gdtuo.Checkpointed(arity=2),
    "checkpointed, 4 kB": gdtuo.Checkpointed(memory=4000),
    "truncated at T": gdtuo.Truncated(12),
    "forward": gdtuo.Forward(),
    "forward, in chunks": gdtuo.Forward(40),
    "reversible": gdtuo.Reversible(),
    "reversible, mixed mode": gdtuo.Reversible(products="forward-over-reverse"),
}
#: the numbers of the optimizer as schedules and for each weight with every method, as scalars with one of each family
CASES = [
    (algorithm, method, form)
    for algorithm, described in ALGORITHMS.items()
    for method in EXACT
    for form in ("schedules", "scalars")
    if described.reversible or not method.startswith("reversible")
    if form == "schedules" or method in ("reverse", "forward", "reversible")
    if algorithm not in NEWER or method in ("reverse", "reverse, mixed mode", "checkpointed, 3 segments", "forward")
]


@pytest.mark.parametrize(("algorithm", "method", "form"), CASES, ids=["-".join(case) for case in CASES])
def test_equals_one_graph_of_the_whole_run(algorithm, method, form):
    problem = Problem(ALGORITHMS[algorithm])
    params, hyper = problem.params(), problem.hyper(getattr(problem, form)())
    value, by_hyper, by_params, final = unrolled(problem, params, hyper)
    result = gdtuo.hypergradient(problem.training(), problem.outer, params, hyper, EXACT[method])
    # A rational momentum and 52 bits after the point are as good as rounding, not the same rounding.
    tolerance = 1e-10
    assert abs(result.value.item() - value) <= tolerance * abs(value)
    assert_close(result.final, final, tolerance)
    assert_close(result.hyper, by_hyper, tolerance)
    followed = result.hyper["optimizer"] if problem.algorithm.flat else result.hyper
    assert all(leaf.any() for leaf in leaves_of(followed))  # nothing that was compared is trivially 0
    if method.startswith("forward"):
        assert result.params is None
    else:
        assert_close(result.params, by_params, tolerance)


@pytest.mark.parametrize("algorithm", [name for name, a in ALGORITHMS.items() if a.level in IN_TORCH and name != "muon"])
@pytest.mark.usefixtures("numbers_of_64_bits")
def test_equals_central_differences_of_the_torch_optimizer(algorithm):
    described = ALGORITHMS[algorithm]
    problem = Problem(described)
    hyper = problem.hyper(problem.scalars())
    result = gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), hyper)

    def trained(numbers: dict[str, float]) -> float:
        params = problem.params()
        weights = [leaf.requires_grad_() for leaf in leaves_of(params)]
        theirs = dict(numbers)
        if "beta1" in theirs:
            theirs["betas"] = (theirs.pop("beta1"), theirs.pop("beta2"))
        if "eps2" in theirs:
            theirs["eps"] = (None, theirs.pop("eps2"))
        pair = IN_TORCH[described.level]
        optimizer = pair.theirs(weights, **theirs, **described.switches, **pair.extra)
        for step in range(problem.steps):
            optimizer.zero_grad()
            problem.inner(params, hyper, problem.batch(step)).backward()
            optimizer.step()
        with torch.no_grad():
            return problem.outer(params, hyper).item()

    for name, number in described.numbers.items():
        h = 1e-4 * abs(number)

        def difference(h: float, name: str = name, number: float = number) -> float:
            up, down = (trained({**described.numbers, name: number + sign * h}) for sign in (1, -1))
            return (up - down) / (2 * h)

        expected = (4 * difference(h) - difference(2 * h)) / 3
        assert result.hyper["optimizer"][name].item() == pytest.approx(expected, rel=1e-6, abs=1e-9), name
    assert result.value.item() == pytest.approx(trained(described.numbers), rel=1e-12)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in NEWER or name == "muon"])
def test_check_hypergradient_agrees(algorithm, monkeypatch):
    monkeypatch.setattr(gdtuo.optimizers.muon, "PRECISION", F64)  # rounded to 16 bits it has no differences
    problem = Problem(ALGORITHMS[algorithm], seed=3)  # with which AMSGrad's maximum does not change over
    hyper = problem.hyper(problem.schedules())
    check = gdtuo.check_hypergradient(problem.training(), problem.outer, problem.params(), hyper, directions=1, entries=1)
    assert len(check.rows) == len(leaves_of(hyper)) + 4
    assert check.worst < 1e-6


@pytest.mark.parametrize("method", [name for name in EXACT if not name.startswith("forward")])
def test_initial_state_is_a_hyperparameter(method):
    problem = Problem(ALGORITHMS["averaging"])
    make = torch.Generator().manual_seed(7)
    numbers = problem.scalars()
    given = {"first": {"weight": torch.randn(3, 4, generator=make, dtype=F64)}, "second": {"bias": torch.ones(2, dtype=F64)}}
    hyper = problem.hyper({**numbers, "state": {"velocity": given}})
    _, by_hyper, by_params, _ = unrolled(problem, problem.params(), hyper)
    result = gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), hyper, EXACT[method])
    assert_close(result.hyper, by_hyper, 1e-10)
    assert_close(result.params, by_params, 1e-10)
    forward = gdtuo.hypergradient(problem.training(), problem.outer, problem.params(), hyper, gdtuo.Forward())
    assert_close(forward.hyper, by_hyper, 1e-10)
