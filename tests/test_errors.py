# ruff: noqa: E501, PLW0108 (one mistake a line makes a table; its calls look alike)
"""Bad input: each mistake raises the right error, which says the remedy, before anything has changed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

import gdtuo
from gdtuo import SGD, Adafactor, AdaGrad, Adam, AdamW, Lion, Muon, NAdam, RAdam, RMSProp, tower

LEVELS = (SGD, Adam, AdamW, AdaGrad, RMSProp, Lion, NAdam, RAdam, Adafactor)
NAN = math.nan


class RowsRule(gdtuo.Rule):
    """Not elementwise: every weight's update depends on its whole row."""

    hyperparameters = {"lr": (0.1, gdtuo.Positive())}
    elementwise = False

    def init(self, weights, hyper):
        return {}

    def update(self, weights, gradient, state, hyper, step):
        return -hyper["lr"] * gradient / (1 + gradient.norm(dim=-1, keepdim=True)), state


class Rows(gdtuo.Level):
    rule = RowsRule


class MisshapenRule(RowsRule):
    elementwise = True

    def init(self, weights, hyper):
        return {"mean": weights.new_zeros(())}


class Misshapen(gdtuo.Level):
    rule = MisshapenRule


class Ruleless(gdtuo.Level):
    pass


def parameters(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes or ((3,), (2, 2))
    ]


def backward(params, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def lbfgs(params):
    return torch.optim.LBFGS([p for group in params for p in group["params"]])


def muon(params):
    return torch.optim.Muon(params, lr=0.01)


class Averaging(torch.optim.SGD):
    """Not elementwise in a way that only shows in the numbers."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad.mean().expand_as(p)
        super().step(closure)


# what stands where                     the call, given fresh parameters              error, and the remedy in its message
CONSTRUCTION: dict[str, tuple[Any, type[Exception], str]] = {
    **{f"{c.__name__} lr < 0": (lambda p, c=c: c(p, lr=-0.1), ValueError, r"lr=-0\.1.*>= 0.*maximize=True") for c in LEVELS},
    **{f"{c.__name__} lr NaN": (lambda p, c=c: c(p, lr=NAN), ValueError, r"lr=nan.*>= 0.*default is") for c in LEVELS},
    "Muon lr < 0": (lambda p: Muon(p[1:], lr=-0.1), ValueError, r"lr=-0\.1.*>= 0.*default is 0\.001"),
    "lr infinite": (lambda p: SGD(p, lr=math.inf), ValueError, r"lr=inf.*>= 0"),
    "lr < 0 in a template": (lambda p: SGD(lr=-0.1), ValueError, r"maximize=True"),
    "lr < 0 in a group": (lambda p: SGD([{"params": p[:1]}, {"params": p[1:], "lr": -0.1}]), ValueError, r"lr=-0\.1.*maximize=True"),
    "lr NaN in a group": (lambda p: Adam([{"params": p, "lr": NAN}]), ValueError, r"lr=nan.*>= 0"),
    "upper lr < 0 in a group": (lambda p: SGD([{"params": p, "L1/lr": -1.0}], optimizer=SGD()), ValueError, r"lr=-1\.0.*>= 0"),
    "lr a word": (lambda p: SGD(p, lr="0.1"), TypeError, r"lr='0\.1'.*[Gg]ive a number"),
    "lr None": (lambda p: SGD(p, lr=None), TypeError, r"lr=None.*[Gg]ive a number"),
    "lr two numbers": (lambda p: SGD(p, lr=torch.ones(2)), ValueError, r"per='tensor'"),
    "beta1 of 1": (lambda p: Adam(p, betas=(1.0, 0.999)), ValueError, r"betas\[0\]=1\.0.*\[0, 1"),
    "beta2 of 1": (lambda p: AdamW(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\]=1\.0.*\[0, 1"),
    "beta < 0": (lambda p: Adam(p, betas=(-0.1, 0.999)), ValueError, r"betas\[0\]=-0\.1.*\[0, 1"),
    "beta > 1 in a group": (lambda p: Adam([{"params": p, "betas": (0.9, 1.5)}]), ValueError, r"betas\[1\]=1\.5.*\[0, 1"),
    "beta NaN": (lambda p: Adam(p, betas=(NAN, 0.9)), ValueError, r"betas\[0\]=nan.*\[0, 1"),
    "one beta": (lambda p: Adam(p, betas=(0.9,)), ValueError, r"Give 2 numbers, as betas=\(0\.9, 0\.999\)"),
    "three betas": (lambda p: Adam(p, betas=(0.9, 0.99, 0.999)), ValueError, r"Give 2 numbers, as betas=\(0\.9, 0\.999\)"),
    "betas a number": (lambda p: Adam(p, betas=0.9), ValueError, r"Give 2 numbers, as betas=\(0\.9, 0\.999\)"),
    "alpha > 1": (lambda p: RMSProp(p, alpha=1.5), ValueError, r"alpha=1\.5.*default is 0\.99"),
    "momentum < 0": (lambda p: SGD(p, momentum=-0.5), ValueError, r"momentum=-0\.5.*default is 0"),
    "weight_decay < 0": (lambda p: AdamW(p, weight_decay=-1e-2), ValueError, r"weight_decay=-0\.01.*>= 0"),
    "eps < 0": (lambda p: Adam(p, eps=-1e-8), ValueError, r"eps=-1e-08.*>= 0"),
    "NAdam momentum_decay < 0": (lambda p: NAdam(p, momentum_decay=-0.1), ValueError, r"momentum_decay=-0\.1.*>= 0.*0\.004"),
    **{f"{c.__name__} beta2 of 1": (lambda p, c=c: c(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\]=1\.0.*\[0, 1") for c in (Lion, NAdam, RAdam)},
    "Lion learns betas": (lambda p: Lion(p, optimizer=SGD(), learn="betas"), ValueError, r"beta1, beta2.*sign.*Leave it out of learn=.*lr, weight_decay"),
    "Lion learns a beta too": (lambda p: Adam(p, optimizer=Lion(optimizer=SGD(), learn=("lr", "beta2"))), ValueError, r"beta2.*Leave it out of learn="),
    "Adafactor beta2_decay > 0": (lambda p: Adafactor(p, beta2_decay=0.8), ValueError, r"beta2_decay=0\.8.*<= 0.*-0\.8"),
    "Adafactor d < 1": (lambda p: Adafactor(p, d=0.5), ValueError, r"d=0\.5.*>= 1"),
    "Adafactor eps1 < 0": (lambda p: Adafactor(p, eps=(-1.0, 1e-3)), ValueError, r"eps\[0\]=-1\.0.*>= 0.*None"),
    "Adafactor eps2 < 0": (lambda p: Adafactor(p, eps=(None, -1e-3)), ValueError, r"eps\[1\]=-0\.001.*>= 0"),
    "Adafactor one eps": (lambda p: Adafactor(p, eps=1e-3), ValueError, r"Give 2 numbers, as eps=\(None, 0\.001\)"),
    "Adafactor learns eps1": (lambda p: Adafactor(p, optimizer=SGD(), learn="eps1"), ValueError, r"'eps1'.*It has lr.*eps"),
    "Adafactor of complex numbers": (lambda p: Adafactor([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]), ValueError, r"complex.*gdtuo\.Adam"),
    "Adafactor per element": (lambda p: Adafactor(p, optimizer=SGD(), per="element"), ValueError, r"Use per='tensor'"),
    "Muon of a vector": (lambda p: Muon(p), ValueError, r"shape \(3,\).*p\.ndim == 2.*gdtuo\.AdamW"),
    "Muon of a named vector": (lambda p: Muon([("bias", p[0])]), ValueError, r"shape \(3,\).*gdtuo\.AdamW"),
    "Muon of a vector in a group": (lambda p: Muon([{"params": p[1:]}, {"params": iter(p[:1])}]), ValueError, r"shape \(3,\).*gdtuo\.AdamW"),
    "Muon of complex numbers": (lambda p: Muon([torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]), ValueError, r"complex.*real matrices"),
    "Muon ns_steps": (lambda p: Muon(p[1:], ns_steps=100), ValueError, r"ns_steps=100.*0 \.\.\. 99"),
    "Muon ns_steps of 1.5": (lambda p: Muon(p[1:], ns_steps=1.5), ValueError, r"ns_steps=1\.5.*integer"),
    "Muon two coefficients": (lambda p: Muon(p[1:], ns_coefficients=(1.5, -0.5)), ValueError, r"Give three numbers"),
    "Muon eps < 0": (lambda p: Muon(p[1:], eps=-1.0), ValueError, r"eps=-1\.0.*>= 0"),
    "Muon momentum > 1": (lambda p: Muon(p[1:], momentum=1.5), ValueError, r"momentum=1\.5.*default is 0\.95"),
    "Muon adjust_lr_fn": (lambda p: Muon(p[1:], adjust_lr_fn="keller"), ValueError, r"'keller'.*'original', 'match_rms_adamw'"),
    "Muon above": (lambda p: Adam(p, optimizer=Muon()), ValueError, r"not elementwise.*gdtuo\.SGD\(\)"),
    "nesterov without momentum": (lambda p: SGD(p, nesterov=True), ValueError, r"momentum > 0"),
    "nesterov with dampening": (lambda p: SGD(p, momentum=0.9, dampening=0.5, nesterov=True), ValueError, r"dampening=0"),
    "learn an unknown name": (lambda p: SGD(p, optimizer=SGD(), learn="beta1"), ValueError, r"has no.*'beta1'.*It has lr, momentum"),
    "learn one unknown name": (lambda p: Adam(p, optimizer=SGD(), learn=("lr", "mu")), ValueError, r"'mu'.*beta1.*betas.*'all'"),
    "learn nothing": (lambda p: SGD(p, optimizer=SGD(), learn=()), ValueError, r"leave optimizer= out"),
    "learn a number": (lambda p: SGD(p, optimizer=SGD(), learn=3), TypeError, r"learn=3.*'lr'"),
    "learn what stands at 0": (lambda p: Adam(p, optimizer=SGD(), learn="weight_decay"), ValueError, r"Start above 0, for example weight_decay=1e-4"),
    "learn momentum from 0": (lambda p: SGD(p, optimizer=SGD(), learn=("lr", "momentum")), ValueError, r"Start above 0"),
    "learn 0 above": (lambda p: SGD(p, optimizer=SGD(learn="momentum", optimizer=SGD())), ValueError, r"Start above 0"),
    "learn without optimizer": (lambda p: Adam(p, learn="lr"), ValueError, r"Add optimizer=gdtuo\.SGD\(\)"),
    "upper lr above its cap": (lambda p: Adam(p, optimizer=SGD(lr=0.5, optimizer=SGD())), ValueError, r"0\.5.*0\.2.*domains=\{'lr': gdtuo\.Positive\(\)\}"),
    "upper lr above its cap in a group": (lambda p: Adam([{"params": p, "L1/lr": 0.5}], optimizer=SGD(optimizer=SGD())), ValueError, r"0\.5.*0\.2.*domains="),
    "lr above the given domain": (lambda p: SGD(p, lr=2.0, domains={"lr": gdtuo.Positive(maximum=1.0)}, optimizer=SGD()), ValueError, r"2\.0.*Start inside"),
    "a float for parameters": (lambda p: SGD(1e-5), TypeError, r"SGD\(lr=1e-05\).*from gdtuo import compat"),
    "an integer for parameters": (lambda p: Adam(1), TypeError, r"Adam\(lr=1\).*compat"),
    "a module for parameters": (lambda p: Adam(torch.nn.Linear(2, 1)), TypeError, r"Adam\(model\.parameters\(\)\)"),
    "a level for parameters": (lambda p: Adam(SGD()), TypeError, r"Adam\(optimizer=SGD\(\)\)"),
    "a tensor for parameters": (lambda p: SGD(p[0]), TypeError, r"iterable of Tensors"),
    "words for parameters": (lambda p: SGD(["weight"]), TypeError, r"Tensors"),
    "no parameters": (lambda p: SGD([]), ValueError, r"empty parameter list"),
    "no parameters, with a tower": (lambda p: SGD(iter(()), optimizer=SGD()), ValueError, r"empty parameter list"),
    "one parameter in two groups": (lambda p: SGD([{"params": p}, {"params": p[:1]}], optimizer=SGD()), ValueError, r"more than one parameter group"),
    "optimizer= a bound level": (lambda p: Adam(p, optimizer=SGD(parameters())), ValueError, r"Give one without: optimizer=SGD\(\.\.\.\) with no params"),
    "optimizer= a torch optimizer": (lambda p: Adam(p, optimizer=torch.optim.SGD(parameters(), lr=0.1)), TypeError, r"gdtuo\.SGD\(\).*lambda params"),
    "optimizer= a number": (lambda p: Adam(p, optimizer=0.01), TypeError, r"gdtuo\.SGD\(\).*lambda params"),
    "optimizer= a word": (lambda p: Adam(p, optimizer="sgd"), TypeError, r"gdtuo\.SGD\(\).*lambda params"),
    "optimizer= a class of levels": (lambda p: Adam(p, optimizer=SGD), TypeError, r"optimizer=(gdtuo\.)?SGD\(\)"),
    "optimizer= builds a level": (lambda p: Adam(p, optimizer=lambda q: SGD(q, lr=0.1)), TypeError, r"optimizer=(gdtuo\.)?SGD\("),
    "optimizer= LBFGS": (lambda p: Adam(p, optimizer=lbfgs), ValueError, r"LBFGS.*gdtuo\.SGD\(\).*lambda params"),
    "optimizer= LBFGS, from a lambda": (lambda p: Adam(p, optimizer=lambda q: torch.optim.LBFGS(q)), ValueError, r"LBFGS.*gdtuo\.SGD\(\)"),
    "optimizer= Muon": (lambda p: Adam(p, optimizer=muon), ValueError, r"Muon.*gdtuo\.SGD\(\).*lambda params"),
    "optimizer= not elementwise": (lambda p: Adam(p, optimizer=Averaging), ValueError, r"not elementwise.*gdtuo\.SGD\(\)"),
    "optimizer= builds nothing": (lambda p: Adam(p, optimizer=lambda q: None), TypeError, r"returned NoneType.*gdtuo\.SGD\(\)"),
    "optimizer= builds a list": (lambda p: Adam(p, optimizer=list), TypeError, r"returned list.*gdtuo\.SGD\(\)"),
    "optimizer= takes no parameters": (lambda p: Adam(p, optimizer=lambda: None), ValueError, r"gdtuo\.SGD\(\).*lambda params"),
    "optimizer= a rule over rows": (lambda p: Adam(p, optimizer=Rows()), ValueError, r"not elementwise.*gdtuo\.SGD\(\)"),
    "per unknown": (lambda p: SGD(p, optimizer=SGD(), per="layer"), ValueError, r"per='layer'.*'group', 'tensor', 'element'"),
    "per a number": (lambda p: SGD(p, per=1), ValueError, r"per=1.*'group', 'tensor', 'element'"),
    "per element of a rule over rows": (lambda p: Rows(p, optimizer=SGD(), per="element"), ValueError, r"Use per='tensor'"),
    "hypergradient unknown": (lambda p: SGD(p, optimizer=SGD(), hypergradient="sign"), ValueError, r"'sign'.*'cosine', 'exact'"),
    "horizon of 0": (lambda p: SGD(p, optimizer=SGD(), horizon=0), ValueError, r"horizon=0.*>= 1"),
    "horizon of 1.5": (lambda p: SGD(p, optimizer=SGD(), horizon=1.5), ValueError, r"horizon=1\.5.*integer"),
    "horizon true": (lambda p: SGD(p, optimizer=SGD(), horizon=True), ValueError, r"horizon=True.*integer"),
    "horizon a word": (lambda p: SGD(optimizer=SGD(), horizon="long"), ValueError, r"horizon='long'.*integer"),
    "bounds swapped": (lambda p: gdtuo.Positive(minimum=1.0, maximum=0.5), ValueError, r"Swap them"),
    "bounds equal": (lambda p: gdtuo.Real(0.5, 0.5), ValueError, r"minimum must be below"),
    "bound NaN": (lambda p: gdtuo.Real(minimum=NAN), ValueError, r"minimum must be below"),
    "bound outside of the domain": (lambda p: gdtuo.UnitInterval(maximum=1.5), ValueError, r"maximum=1\.5.*a bound is"),
    "domain a class": (lambda p: SGD(p, optimizer=SGD(), domains={"lr": gdtuo.Positive}), TypeError, r"Give an instance.*gdtuo\.Positive\("),
    "domain a word": (lambda p: SGD(p, optimizer=SGD(), domains={"lr": "log"}), TypeError, r"Give an instance"),
    "domain of an unknown name": (lambda p: SGD(p, optimizer=SGD(), domains={"mu": gdtuo.Real()}), ValueError, r"'mu'.*It has lr, momentum"),
    "domains not a dictionary": (lambda p: SGD(p, optimizer=SGD(), domains=gdtuo.Real()), TypeError, r"domains=\{'lr': "),
    "unknown keyword": (lambda p: SGD(p, rate=0.1), TypeError, r"'rate'.*takes lr"),
    "misspelt optimizer": (lambda p: Adam(p, optimiser=SGD()), TypeError, r"'optimiser'.*optimizer"),
    "a keyword of another": (lambda p: SGD(p, betas=(0.9, 0.99)), TypeError, r"'betas'.*takes lr"),
    "differentiable": (lambda p: Adam(p, differentiable=True), ValueError, r"name a level in optimizer="),
    "a level without a rule": (lambda p: Ruleless(p), TypeError, r"rule = YourRule"),
    "a state of another shape": (lambda p: Misshapen(p), ValueError, r"torch\.zeros_like\(weights\).*elementwise = False"),
    "text: unknown name": (lambda p: tower("adam/sdg"), ValueError, r"no level 'sdg'.*adafactor, adagrad, adam.*lion.*muon.*nadam.*radam.*sgd"),
    "text: empty": (lambda p: tower(""), ValueError, r"Write levels bottom first, as 'adam/sgd\(lr=0\.01\)/sgd'"),
    "text: syntax": (lambda p: tower("adam/sgd(lr=0.01"), ValueError, r"Write levels bottom first"),
    "text: two slashes": (lambda p: tower("adam//sgd"), ValueError, r"Write levels bottom first"),
    "text: trailing slash": (lambda p: tower("adam/"), ValueError, r"Write levels bottom first"),
    "text: a product": (lambda p: tower("adam*sgd"), ValueError, r"Write levels bottom first"),
    "text: positional": (lambda p: tower("adam/sgd(0.01)"), ValueError, r"Write levels bottom first, as 'adam/sgd\(lr=0\.01\)/sgd'"),
    "text: unpacked": (lambda p: tower("sgd(**{'lr': 0.01})"), ValueError, r"Write levels bottom first"),
    "text: not a literal": (lambda p: tower("sgd(lr=rate)"), ValueError, r"Write levels bottom first"),
    "text: a call of a call": (lambda p: tower("sgd(lr=0.1)()"), ValueError, r"Write levels bottom first"),
    "text: keyword twice": (lambda p: tower("sgd(lr=0.1, lr=0.2)"), ValueError, r"Write levels bottom first"),
    "text: unknown keyword": (lambda p: tower("adam/sgd(rate=0.1)"), ValueError, r"'rate'.*takes lr"),
    "text: bad number": (lambda p: tower("adam/sgd(lr=-0.1)"), ValueError, r"maximize=True"),
    "text: an optimizer inside": (lambda p: tower("adam(optimizer=None)/sgd"), ValueError, r"optimizer"),
    "text: no text": (lambda p: tower(SGD()), TypeError, r"as 'adam/sgd\(lr=0\.01\)/sgd'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRUCTION)
def test_construction(name):
    call, kind, remedy = CONSTRUCTION[name]
    params = parameters()
    before = [p.detach().clone() for p in params]
    with pytest.raises(kind, match=remedy) as caught:
        call(params)
    assert type(caught.value) is kind
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p, value)
        assert (p.grad, p.requires_grad, p.is_leaf) == (None, True, True)


# ---------------------------------------------------------------- optimizers at work


def small_tower(params):
    return Adam(params, lr=0.01, optimizer=SGD(optimizer=SGD()))


def spoil(optimizer, index=0):
    """A gradient that cannot be stepped with."""
    p = optimizer.param_groups[0]["params"][index]
    p.grad = torch.sparse_coo_tensor(torch.zeros(p.dim(), 1, dtype=torch.long), torch.ones(1, dtype=p.dtype), p.shape)
    return optimizer


def saved(make, steps=2, params=None):
    params = parameters() if params is None else params
    optimizer = make(params)
    for i in range(steps):
        backward(params, i)
        optimizer.step()
    return optimizer.state_dict()


def switched_off(optimizer):
    optimizer.learning = False
    return optimizer


AT_WORK: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "group: lr < 0": (small_tower, lambda o: o.add_param_group({"params": parameters(), "lr": -0.1}), ValueError, r"maximize=True"),
    "group: lr NaN": (small_tower, lambda o: o.add_param_group({"params": parameters(), "lr": NAN}), ValueError, r"lr=nan.*>= 0"),
    "group: betas": (small_tower, lambda o: o.add_param_group({"params": parameters(), "betas": (0.9, 1.0)}), ValueError, r"\[0, 1"),
    "group: one beta": (small_tower, lambda o: o.add_param_group({"params": parameters(), "betas": (0.9,)}), ValueError, r"Give 2 numbers"),
    "group: upper lr < 0": (small_tower, lambda o: o.add_param_group({"params": parameters(), "L1/lr": -1.0}), ValueError, r">= 0"),
    "group: upper lr above its cap": (small_tower, lambda o: o.add_param_group({"params": parameters(), "L1/lr": 0.5}), ValueError, r"0\.5.*0\.2"),
    "group: nesterov": (SGD, lambda o: o.add_param_group({"params": parameters(), "nesterov": True}), ValueError, r"momentum > 0"),
    "group: a vector for Muon": (lambda p: Muon(p[1:], optimizer=SGD()), lambda o: o.add_param_group({"params": iter(parameters((3,)))}), ValueError, r"shape \(3,\).*gdtuo\.AdamW"),
    "group: a parameter again": (small_tower, lambda o: o.add_param_group({"params": o.param_groups[0]["params"][:1]}), ValueError, r"more than one parameter group"),
    "group: no dictionary": (small_tower, lambda o: o.add_param_group(parameters()), TypeError, r"dict"),
    "step with a sparse gradient": (small_tower, lambda o: spoil(o).step(), RuntimeError, r"sparse=False.*SparseAdam"),
    "step with one sparse gradient": (small_tower, lambda o: spoil(o, 1).step(), RuntimeError, r"sparse=False"),
    "step without a tower, sparse": (SGD, lambda o: spoil(o).step(), RuntimeError, r"sparse=False"),
    "hyperstep with a sparse gradient": (small_tower, lambda o: spoil(o).hyperstep(), RuntimeError, r"sparse=False"),
    "hypergradients, sparse": (small_tower, lambda o: spoil(o).hypergradients(), RuntimeError, r"sparse=False"),
    "hyperstep without a tower": (SGD, lambda o: o.hyperstep(), RuntimeError, r"Add optimizer=gdtuo\.SGD\(\)"),
    "learning without a tower": (SGD, lambda o: setattr(o, "learning", True), RuntimeError, r"Add optimizer=gdtuo\.SGD\(\)"),
    "hyperstep while not learning": (lambda p: switched_off(small_tower(p)), lambda o: o.hyperstep(), RuntimeError, r"learning = True"),
    "load a lower tower": (small_tower, lambda o: o.load_state_dict(saved(lambda p: Adam(p, optimizer=SGD()))), ValueError, r"optimizer=, learn= and per="),
    "load a taller tower": (lambda p: Adam(p, optimizer=SGD()), lambda o: o.load_state_dict(saved(small_tower)), ValueError, r"optimizer=, learn= and per="),
    "load a tower that learns more": (small_tower, lambda o: o.load_state_dict(saved(lambda p: Adam(p, learn="all", optimizer=SGD(optimizer=SGD())))), ValueError, r"learn="),
    "load a tower per tensor": (small_tower, lambda o: o.load_state_dict(saved(lambda p: Adam(p, per="tensor", optimizer=SGD(optimizer=SGD())))), ValueError, r"per="),
    "load a tower of other levels": (small_tower, lambda o: o.load_state_dict(saved(lambda p: Adam(p, optimizer=Adam(optimizer=SGD())))), ValueError, r"optimizer="),
    "load a tower into none": (Adam, lambda o: o.load_state_dict(saved(small_tower)), ValueError, r"optimizer="),
    "load another optimizer": (Adam, lambda o: o.load_state_dict(saved(lambda p: SGD(p, momentum=0.9))), ValueError, r"another optimizer|another tower"),
    "load other shapes": (small_tower, lambda o: o.load_state_dict(saved(small_tower, params=parameters((4,), (2, 2)))), ValueError, r"same parameters"),
    "load other groups": (small_tower, lambda o: o.load_state_dict(saved(lambda p: small_tower([{"params": p[:1]}, {"params": p[1:]}]))), ValueError, r"parameter group"),
    "load fewer parameters": (small_tower, lambda o: o.load_state_dict(saved(small_tower, params=parameters((3,)))), ValueError, r"same parameters|size of optimizer's group"),
}  # fmt: skip


def snapshot(optimizer):
    """Everything that a failed call must leave as it was: weights and all that is saved."""
    return copy.deepcopy([[p.detach() for p in group["params"]] for group in optimizer.param_groups] + [optimizer.state_dict()])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def advance(optimizer, steps):
    for i in range(steps):
        backward([p for group in optimizer.param_groups for p in group["params"]], seed=10 + i)
        optimizer.step()


@pytest.mark.parametrize("name", AT_WORK)
def test_at_work(name):
    make, call, kind, remedy = AT_WORK[name]
    optimizer, twin = make(parameters()), make(parameters())
    for some in (optimizer, twin):
        advance(some, 3)
        backward([p for group in some.param_groups for p in group["params"]])
    before = snapshot(optimizer)
    with pytest.raises(kind, match=remedy) as caught:
        call(optimizer)
    assert type(caught.value) is kind
    assert same(before, snapshot(optimizer))
    for some in (optimizer, twin):  # and what does not show in it
        advance(some, 3)
    assert same(snapshot(optimizer), snapshot(twin))


def test_snapshots_tell_a_step():
    """What `test_at_work` relies on."""
    optimizer = small_tower(parameters())
    advance(optimizer, 1)
    before = snapshot(optimizer)
    assert same(before, snapshot(optimizer))
    advance(optimizer, 1)
    assert not same(before, snapshot(optimizer))


@pytest.mark.parametrize(
    "call",
    [
        lambda o: o.step(),
        lambda o: o.step(lambda: torch.zeros(())),
        lambda o: o.zero_grad(),
        lambda o: o.hyperstep(),
        lambda o: o.state_dict(),
        lambda o: o.load_state_dict({"state": {}, "param_groups": []}),
        lambda o: o.hyperparameters(),
        lambda o: o.hypergradients(),
        lambda o: o.skipped,
        lambda o: o.add_param_group({"params": parameters()}),
        lambda o: setattr(o, "learning", False),
        lambda o: setattr(o, "learning", True),
    ],
)
@pytest.mark.parametrize("template", [SGD, lambda: Adam(lr=0.01, optimizer=SGD())])
def test_a_template_names_bind(call, template):
    optimizer = template()
    shown = repr(optimizer)
    with pytest.raises(
        RuntimeError, match=r"template without parameters\. Bind it first: \w+\(.*\)\.bind\(model\.parameters\(\)\)"
    ):
        call(optimizer)
    assert repr(optimizer) == shown
    assert not optimizer.param_groups
    optimizer.bind(parameters()).step()


def test_a_failed_group_leaves_the_users_dictionary_alone():
    optimizer = small_tower(parameters())
    group = {"params": parameters(), "lr": -0.1}
    keys = set(group)
    with pytest.raises(ValueError, match="maximize=True"):
        optimizer.add_param_group(group)
    assert set(group) == keys


def test_an_optimizer_that_is_shared_between_towers_is_a_template():
    """Not a mistake: nothing of it is bound."""
    upper = SGD(lr=0.1)
    a, b = Adam(parameters(), optimizer=upper), Adam(parameters(), optimizer=upper)
    advance(a, 3)
    assert b.hyperparameters()["L0/g0/lr"] == 1e-3
    assert not upper.param_groups
