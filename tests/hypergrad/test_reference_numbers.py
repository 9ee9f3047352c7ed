"""Numbers of the published systems, recomputed in 64 bits: Franceschi's notebooks, the implicit one, Maclaurin's figure 1."""

from __future__ import annotations

import pytest
import torch

import gdtuo

F64 = torch.float64
TRAINED = {
    "reverse": gdtuo.Reverse(),
    "checkpointed": gdtuo.Checkpointed(),
    "forward": gdtuo.Forward(),
    "reversible": gdtuo.Reversible(),
}
METHODS = pytest.mark.parametrize("method", TRAINED.values(), ids=TRAINED.keys())


def tensor(*values: object) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64)


def squares(params, hyper, batch):
    return params["v1"].square().mean() + (hyper["penalty"] * params["v2"].square()).sum()


def product(params, hyper):
    return (params["v1"] * params["v2"]).mean()


@METHODS
def test_check_forward(method):
    params = {"v1": tensor([[1, -1, 1], [2, 10, 2]]), "v2": tensor([-1, 1, 0.2])}
    hyper = {"penalty": tensor([1, 1, 1]), "optimizer": {"lr": tensor(0.1), "momentum": tensor(0.5)}}
    training = gdtuo.Training(squares, gdtuo.SGD(), steps=10)
    result = gdtuo.hypergradient(training, product, params, hyper, method)
    torch.testing.assert_close(
        result.hyper["penalty"], tensor([-0.0183935281751, 0.0551805845254, 0.003678705635]), rtol=0, atol=1e-12
    )
    assert result.hyper["optimizer"]["lr"].item() == pytest.approx(0.5387224999304, abs=1e-12)
    assert result.hyper["optimizer"]["momentum"].item() == pytest.approx(-0.0765422446853, abs=1e-12)


@METHODS
def test_check_reverse(method):
    params = {"v1": tensor([1, 3]), "v2": tensor([[-1, -2], [1, 0]])}
    hyper = {"penalty": torch.zeros(2, 2, dtype=F64), "optimizer": {"lr": tensor(0.1), "momentum": tensor(0.9)}}
    training = gdtuo.Training(squares, gdtuo.SGD(), steps=10)
    result = gdtuo.hypergradient(training, product, params, hyper, method)
    expected = tensor([[-1.218236439754, -7.3094186385238], [1.218236439754, 0]])
    torch.testing.assert_close(result.hyper["penalty"], expected, rtol=0, atol=1e-12)
    assert result.hyper["optimizer"]["lr"].item() == pytest.approx(-1.231525944, abs=1e-9)
    assert result.hyper["optimizer"]["momentum"].item() == pytest.approx(4.794621336, abs=1e-9)


CENTRE, TARGET = tensor([0, -1, 12, 18]), tensor([0.1, -1.1, 12.1, 18.1])


@pytest.mark.parametrize(
    "method",
    [
        gdtuo.Implicit(),
        gdtuo.Implicit("neumann", 400, 1e-14),
        gdtuo.Implicit("fixed_point", 400, 1e-14),
        gdtuo.Implicit(products="forward-over-reverse"),
        gdtuo.Reverse(),
    ],
    ids=repr,
)
def test_implicit(method):
    def inner(params, hyper, batch):
        return (hyper["e"] * params["w"] ** 2 + (params["w"] - CENTRE) ** 2).sum()

    training = gdtuo.Training(inner, gdtuo.SGD(lr=0.1), steps=400)
    hyper = {"e": tensor([3, 1.1, 1, 0.1])}
    start = {"w": torch.zeros(4, dtype=F64)}
    result = gdtuo.hypergradient(training, lambda p, h: (p["w"] - TARGET).square().sum(), start, hyper, method)
    torch.testing.assert_close(result.hyper["e"], tensor([0, 0.28290681, 36.6, 51.66040571]), rtol=0, atol=1e-8)


def figure_1(params, hyper, batch=None):
    y, x = params["w"]
    r = 100 * (x - y**2) ** 2 + (1 - y) ** 2 + 200 * y
    return 800 * torch.sigmoid(r / 500)


@METHODS
def test_reversible_figure_1(method):
    steps = 50
    training = gdtuo.Training(figure_1, gdtuo.AveragingSGD(), steps=steps)
    learned = [torch.full((steps,), -4.5, dtype=F64), torch.full((steps,), 0.99, dtype=F64).logit()]
    means = [torch.zeros(steps, dtype=F64) for _ in learned]
    losses = []
    for iteration in range(3):
        raw = [x.clone().requires_grad_() for x in learned]
        numbers = {"lr": raw[0].exp(), "momentum": raw[1].sigmoid()}
        result = gdtuo.hypergradient(training, figure_1, {"w": tensor([1.4, 3.9])}, {"optimizer": numbers}, method)
        if iteration == 0:
            slopes = result.hyper["optimizer"]
            assert slopes["lr"][0].item() == pytest.approx(1004.0875089540, abs=5e-10)
            assert slopes["momentum"][0].item() == pytest.approx(2566.3590679286, abs=5e-10)
        losses.append(result.value.item())
        torch.autograd.backward(list(numbers.values()), [result.hyper["optimizer"][name] for name in numbers])
        for i, x in enumerate(raw):
            means[i] = 0.9 * means[i] + 0.1 * x.grad
            learned[i] = learned[i] - 0.01 * means[i]
    # The run is chaotic: what a rounding in the last place of a weight does grows 1e4-fold.
    assert losses == pytest.approx([395.3552074251, 356.6034635350, 356.3042216882], abs=1e-9)
