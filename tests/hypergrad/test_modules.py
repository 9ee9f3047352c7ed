"""`make_functional`: a run of a module equals torch's own training of it."""

from __future__ import annotations

import pytest
import torch
from problems import F64
from torch import nn

import gdtuo

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
Y = torch.randn(24, 2, generator=torch.Generator().manual_seed(1), dtype=F64)


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    return net.to(F64)


def loss_of(apply):
    return lambda params, hyper, rows: (apply(params, X[rows]) - Y[rows]).square().mean()


def batch(t: int) -> torch.Tensor:
    return torch.arange(8) + 8 * (t % 3)


def test_equals_training_the_module():
    net = network()
    apply, params = gdtuo.make_functional(net)
    training = gdtuo.Training(loss_of(apply), gdtuo.Adam(lr=0.01), batch, steps=10)
    result = gdtuo.hypergradient(training, lambda p, h: p["0.weight"].sum(), params, {})
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for t in range(10):
        optimizer.zero_grad()
        (net(X[batch(t)]) - Y[batch(t)]).square().mean().backward()
        optimizer.step()
    assert list(result.final) == [name for name, _ in net.named_parameters()]
    for name, weight in net.named_parameters():
        torch.testing.assert_close(result.final[name], weight.detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", [gdtuo.Reverse(), gdtuo.Forward(), gdtuo.Reverse(products="forward-over-reverse")], ids=repr)
def test_batch_norm_and_dropout_with_every_mode(method):
    net = nn.Sequential(network(), nn.Dropout(0.3))
    apply, params = gdtuo.make_functional(net)
    evaluate, _ = gdtuo.make_functional(net.eval())
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def outer(params, hyper):
        return (evaluate(params, X) - Y).square().mean()

    hyper = {"optimizer": {"lr": {"0.0.weight": torch.full((6,), 0.1, dtype=F64), "0.1.weight": torch.tensor(0.05, dtype=F64)}}}
    training = gdtuo.Training(loss_of(apply), gdtuo.SGD(lr=0.1, momentum=0.9), batch, steps=6)
    check = gdtuo.check_hypergradient(training, outer, params, hyper, method, directions=1)
    assert check.worst < 1e-7
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name])  # constants, the module's own untouched


def test_running_statistics_are_constants():
    net = network()
    net[1].running_mean += 0.7
    trains, params = gdtuo.make_functional(net)
    tests, _ = gdtuo.make_functional(net.eval())
    torch.testing.assert_close(tests(params, X), net(X).detach(), rtol=1e-14, atol=1e-14)
    first = trains(params, X)
    assert torch.equal(first, trains(params, X))
    torch.testing.assert_close(first, net.train()(X).detach(), rtol=1e-12, atol=1e-14)  # which does move its statistics
    assert not torch.equal(tests(params, X), net.eval()(X).detach())


def test_tied_and_frozen_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3, bias=False, dtype=F64)
            self.b = nn.Linear(3, 3, bias=True, dtype=F64)
            self.b.weight = self.a.weight
            self.b.bias.requires_grad_(False)

        def forward(self, x):
            return self.b(self.a(x).tanh())

    net = Tied()
    apply, params = gdtuo.make_functional(net)
    assert list(params) == ["a.weight"]
    changed = {"a.weight": 2 * params["a.weight"]}
    expected = (X @ changed["a.weight"].T).tanh() @ changed["a.weight"].T + net.b.bias
    torch.testing.assert_close(apply(changed, X), expected.detach())
    params["a.weight"].zero_()
    assert net.a.weight.any()  # a copy


def test_only_modules():
    with pytest.raises(TypeError, match=r"Give an nn\.Module"):
        gdtuo.make_functional(lambda x: x)
