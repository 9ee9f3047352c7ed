# ruff: noqa: E501 (a tower is one line)
"""Towers from text, and back."""

from __future__ import annotations

import pytest
import torch

import gdtuo
from gdtuo import tower


class TwiceRule(gdtuo.Rule):
    """w ← w - 2 η g."""

    hyperparameters = {"lr": (0.1, gdtuo.Positive())}

    def init(self, weights, hyper):
        return {}

    def update(self, weights, gradient, state, hyper, step):
        return -2 * hyper["lr"] * gradient, state


class Twice(gdtuo.Level):
    rule = TwiceRule


class TwiceAsSlow(Twice):
    """Found below its own base."""


class _Hidden(Twice):
    pass


class ShownBelowHidden(_Hidden):
    pass


TEXTS = ["sgd", "adam", "adamw", "adagrad", "rmsprop", "adam / sgd", "adam / sgd / sgd", "rmsprop / adagrad / adamw / sgd / adam"]


@pytest.mark.parametrize("text", TEXTS)
def test_str_round_trip(text):
    assert str(tower(text)) == text
    assert str(tower(str(tower(text)))) == text
    assert tower(text).height == text.count("/")


@pytest.mark.parametrize(
    "text", ["adam/sgd/sgd", " adam / sgd/sgd ", "Adam/SGD/sgd", "adam()/sgd()/sgd()", "adam / sgd(lr = 0.01,) / sgd"]
)
def test_spaces_and_case_do_not_matter(text):
    assert str(tower(text)) == "adam / sgd / sgd"


def test_every_level_has_its_own_arguments():
    built = tower(
        "adam(lr=0.02, betas=(0.8, 0.9), learn='all', amsgrad=True, horizon=10) / sgd(lr=0.03, momentum=0.5, per='element') / sgd(lr=1e-3)"
    )
    optimizer = built.bind([torch.nn.Parameter(torch.ones(3))])
    values = optimizer.hyperparameters()
    assert {key: values[f"L0/g0/{key}"] for key in ("lr", "beta1", "beta2")} == {"lr": 0.02, "beta1": 0.8, "beta2": 0.9}
    assert values["L1/g0/momentum"] == 0.5
    assert values["L1/g0/lr/lr"] == values["L1/g0/lr/eps"] == 0.03
    assert values["L2/g0/lr"] == 1e-3
    assert optimizer.param_groups[0]["amsgrad"] is True


def test_it_is_the_tower_written_in_python():
    text = "adam(lr=0.02, betas=(0.8, 0.9), learn=('lr', 'betas'), hypergradient='exact') / sgd(lr=1e-3, momentum=0.5) / sgd(lr=-0.0)"
    python = gdtuo.Adam(
        lr=0.02,
        betas=(0.8, 0.9),
        learn=("lr", "betas"),
        hypergradient="exact",
        optimizer=gdtuo.SGD(lr=1e-3, momentum=0.5, optimizer=gdtuo.SGD(lr=0.0)),
    )
    trained = []
    for template in (tower(text), python):
        w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer = template.bind([w])
        for _ in range(10):
            optimizer.zero_grad()
            (w * w * w * w).sum().backward()
            optimizer.step()
        trained.append((w.tolist(), optimizer.hyperparameters()))
    assert trained[0] == trained[1]
    assert trained[0][1]["L0/g0/beta1"] != 0.8


def test_it_is_a_template():
    built = tower("adam/sgd")
    assert built.param_groups == []
    assert repr(eval(repr(built), vars(gdtuo))) == repr(built)
    first, second = (built.bind([torch.nn.Parameter(torch.ones(2))]) for _ in range(2))
    assert first.param_groups[0]["params"][0] is not second.param_groups[0]["params"][0]


def test_levels_of_your_own_are_found():
    assert type(tower("twice")) is Twice
    assert type(tower("TwiceAsSlow(lr=0.2)/twice")) is TwiceAsSlow
    assert str(tower("adam/twice/sgd")) == "adam / twice / sgd"
    assert type(tower("shownbelowhidden")) is ShownBelowHidden
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = tower("twice(lr=0.25)").bind([w])
    w.grad = torch.ones(1)
    optimizer.step()
    assert w.item() == 0.5


def test_levels_that_hide_are_not():
    with pytest.raises(ValueError, match="no level '_hidden'") as caught:
        tower("_hidden/sgd")
    listed = str(caught.value).split("There are ")[1].rstrip(".").split(", ")
    assert {"sgd", "adam", "adamw", "adagrad", "rmsprop", "twice"} <= set(listed)
    assert not [name for name in listed if name.startswith("_")]
    assert listed == sorted(listed)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adagrad", "AdaGrad"), ("rmsprop", "RMSProp")])
def test_the_published_names_do_not_take_them(name, kind):
    assert type(tower(name)) is getattr(gdtuo, kind)


# What is refused stands in test_errors.py.
