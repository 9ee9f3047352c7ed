"""A cell is trained as one would train it by hand, alone or together with others."""

import math
from itertools import pairwise

import own_tasks
import pytest
import torch
from torch.nn.functional import cross_entropy

import gdtuo
from gdtuo.lab.tasks import Named
from gdtuo.lab.training import POINTS, Start, train

TOWERS = ["adam", "adam/sgd/sgd", "sgd(momentum=0.9, learn='all')/adam", "adam(per='tensor')/sgd", "adafactor/sgd"]
STARTS = [Start(lr, seed) for seed in (0, 5) for lr in (1e-4, 1e-2, 1.0)]


def by_hand(text, start, epochs=4):
    """Error, mean loss of the last epoch, and the hyperparameters after each step, in a loop without the lab."""
    data = own_tasks._blobs()
    torch.manual_seed(start.seed)
    model = own_tasks._network()
    optimizer = gdtuo.tower(text).bind([{"params": list(model.parameters()), "lr": start.lr}])
    generator = torch.Generator().manual_seed(start.seed)
    seen = [optimizer.hyperparameters()]
    for _ in range(epochs):
        losses = []
        for index in torch.randperm(80, generator=generator).split(32):
            optimizer.zero_grad()
            loss = cross_entropy(model(data.train.inputs[index]), data.train.labels[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen.append(optimizer.hyperparameters())
    wrong = model(data.test.inputs).argmax(1) != data.test.labels
    return 100 * wrong.double().mean().item(), sum(losses) / len(losses), seen


def agree(outcome, text, start, tolerance):
    error, loss, seen = by_hand(text, start)
    assert outcome.error == pytest.approx(error, abs=1e-9)
    assert outcome.loss == pytest.approx(loss, rel=tolerance)
    assert not outcome.diverged
    assert list(outcome.trace) == list(range(13))
    for step, table in outcome.trace.items():
        for name, value in table.items():
            assert value == pytest.approx(seen[step][name.replace("/", "/g0/", 1)], rel=tolerance), (step, name)
    moved = {name for name in seen[-1] if name.endswith("/lr") or seen[-1][name] != seen[0][name]}
    assert {name.replace("/", "/g0/", 1) for name in outcome.trace[12]} >= {n for n in moved if n.count("/") == 2}


@pytest.mark.parametrize("text", TOWERS)
def test_alone(text):
    (outcome,) = train(own_tasks.blobs(), text, STARTS[1:2])
    agree(outcome, text, STARTS[1], 1e-13)


@pytest.mark.parametrize("text", TOWERS)
def test_together_over_seeds_and_rates(text):
    for outcome, start in zip(train(own_tasks.blobs(), text, STARTS), STARTS, strict=True):
        agree(outcome, text, start, 1e-9)


def test_together_over_rates_of_one_seed():
    for outcome, start in zip(train(own_tasks.blobs(), "adam/sgd/sgd", STARTS[:3]), STARTS[:3], strict=True):
        agree(outcome, "adam/sgd/sgd", start, 1e-9)


def test_a_cell_that_diverges_leaves_the_others_alone():
    starts = [Start(0.1, 0), Start(1e200, 0), Start(0.1, 1)]
    outcomes = train(own_tasks.squares(), "sgd(trust=inf)/sgd", starts)
    assert [outcome.diverged for outcome in outcomes] == [False, True, False]
    assert outcomes[1].skipped > 0
    for k in (0, 2):
        (alone,) = train(own_tasks.square(), "sgd(trust=inf)/sgd", starts[k : k + 1])
        assert outcomes[k].error == pytest.approx(alone.error, rel=1e-10)
        assert outcomes[k].loss == pytest.approx(alone.loss, rel=1e-10)


def test_divergence_is_an_outcome():
    (outcome,) = train(own_tasks.square(), "sgd", [Start(1e200, 0)])
    assert outcome.diverged
    assert math.isnan(outcome.error)
    assert not math.isfinite(outcome.loss)
    (outcome,) = train(own_tasks.blobs(), "adam", [Start(1e308, 0)])
    assert outcome.error == 100  # outputs that are not finite are wrong


def test_weights_that_are_not_finite_are_divergence():
    (outcome,) = train(own_tasks.jumps(), "sgd", [Start(1e300, 0)])
    assert math.isfinite(outcome.loss)
    assert outcome.error == 0
    assert outcome.diverged


def test_where_all_have_diverged_training_ends():
    (outcome,) = train(own_tasks.square(), "sgd", [Start(1e200, 0)], epochs=50)
    assert max(outcome.trace) == 4


@pytest.mark.parametrize("n", [1, 2])
def test_networks_are_evaluated_in_evaluation_mode(n):
    outcomes = train(own_tasks.mode(), "sgd", [Start(0.1, seed) for seed in range(n)])
    assert [(outcome.loss, outcome.error) for outcome in outcomes] == [(1, 0)] * n


def test_epochs_may_be_others():
    (outcome,) = train(own_tasks.blobs(), "adam/sgd", [Start(0.01, 0)], epochs=2)
    assert max(outcome.trace) == 6
    assert outcome.error == pytest.approx(by_hand("adam/sgd", Start(0.01, 0), epochs=2)[0], abs=1e-9)


def test_a_long_run_s_trace_is_thinned_out_evenly():
    (outcome,) = train(own_tasks.blobs(), "sgd/sgd", [Start(0.01, 0)], epochs=50)
    steps = list(outcome.trace)
    assert (steps[0], steps[-1]) == (0, 150)
    assert POINTS / 2 - 1 <= len(steps) <= POINTS + 1
    assert {b - a for a, b in pairwise(steps[:-1])} == {4}
    seen = by_hand("sgd/sgd", Start(0.01, 0), epochs=50)[2]
    assert {step: table["L0/lr"] for step, table in outcome.trace.items()} == {step: seen[step]["L0/g0/lr"] for step in steps}


def test_what_is_frozen_stays_so_together():
    starts = STARTS[:2]
    for outcome, start in zip(train(own_tasks.partly_frozen(), "adam(per='tensor')/sgd", starts), starts, strict=True):
        (alone,) = train(own_tasks.partly_frozen(), "adam(per='tensor')/sgd", [start])
        assert outcome.loss == pytest.approx(alone.loss, rel=1e-9)
        assert outcome.trace.keys() == alone.trace.keys()
        for name, value in alone.trace[12].items():
            assert outcome.trace[12][name] == pytest.approx(value, rel=1e-9)


def test_the_error_is_a_number_and_one_that_is_not_finite_is_divergence():
    (outcome,) = train(own_tasks.square_in_a_tensor(), "sgd", [Start(0.1, 0)])
    assert type(outcome.error) is float
    assert not outcome.diverged
    (outcome,) = train(own_tasks.overflows(), "sgd", [Start(0.1, 0)])
    assert math.isfinite(outcome.loss)
    assert outcome.diverged


@pytest.mark.parametrize(("name", "message"), [("dropout", "random"), ("buffers", "together=1")])
def test_what_vmap_cannot_do_is_refused(name, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        train(getattr(own_tasks, name)(), "sgd", [Start(0.1, 0), Start(0.2, 0)])


def test_the_digits_are_those_of_a_plain_loop():
    task = Named("digits").load()
    torch.manual_seed(2)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for batch in task.epoch(torch.Generator().manual_seed(2)):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    (outcome,) = train(task, "adam", [Start(1e-3, 2)], epochs=1)
    assert outcome.error == pytest.approx(task.evaluate(model), abs=0.3)  # an example in 360
