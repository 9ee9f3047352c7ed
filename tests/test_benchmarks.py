"""The benchmarks measure what they say. No test here looks at how fast anything is."""

import inspect
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import (
    children,
    curvature,
    device,
    memory,
    models,
    picture,
    results,
    reversal,
    schedulers,
    targets,
    timing,
    together,
    trials,
    whole_training,
)
from benchmarks.compilation import Compilation
from benchmarks.optimizers import BARE, BASELINES, CONTESTANTS, HEIGHTS, OPTIMIZERS, PUBLISHED, driver, tower_name
from gdtuo.lab.tasks import Named

# ---------------------------------------------------------------- timing


class Fakes:
    """Contestants that take a known time on a clock of their own, and write down that they were called."""

    def __init__(self, **costs):
        self.now, self.log = 0.0, []
        self.costs = {name: iter(cost) if isinstance(cost, list) else None for name, cost in costs.items()}
        self.tasks = {name: lambda name=name, cost=cost: self.call(name, cost) for name, cost in costs.items()}

    def call(self, name, cost):
        self.now += cost if self.costs[name] is None else next(self.costs[name])
        self.log.append(name)

    def measure(self, **arguments):
        return timing.interleave(self.tasks, clock=lambda: self.now, **arguments)


def rounds(log, count, calls):
    """The end of the log, after warm-up: for each round, who was called."""
    size = sum(calls.values())
    tail = log[-count * size :]
    return [tail[i * size : (i + 1) * size] for i in range(count)]


def test_contestants_take_turns():
    fakes = Fakes(a=1.0, b=2.0, c=3.0)
    fakes.measure(repetitions=12, seconds=0.5)
    played = rounds(fakes.log, 12, {"a": 1, "b": 1, "c": 1})
    assert all(sorted(names) == ["a", "b", "c"] for names in played)
    assert len({tuple(names) for names in played}) > 3  # nobody always comes after the same one
    warm_up = fakes.log[: -12 * 3]
    assert min(warm_up.count(name) for name in "abc") >= timing.WARM_UP


def test_a_repetition_is_long_enough():
    fakes = Fakes(a=0.25, b=8.0)
    timings = fakes.measure(repetitions=5, seconds=2.0)
    for names in rounds(fakes.log, 5, {"a": 8, "b": 1}):
        assert sorted(names) == ["a"] * 8 + ["b"]
        assert "".join(names) in ("aaaaaaaab", "baaaaaaaa")
    assert timings == {"a": (0.25, 0.25, 0.25), "b": (8.0, 8.0, 8.0)}  # seconds for one call


def test_median_and_quartiles():
    slow_start = [100.0] * (timing.WARM_UP + 3)
    fakes = Fakes(a=[*slow_start, 9.0, 1.0, 5.0, 3.0, 7.0], b=1.0)
    timings = fakes.measure(repetitions=5, seconds=0.5)
    assert timings["a"] == (5.0, 3.0, 7.0)
    assert timings["b"].median == 1.0


def test_what_takes_long_is_not_called_in_vain():
    fakes = Fakes(a=5.0, b=1.0)
    timings = fakes.measure(repetitions=3, seconds=0.0, warm_up=0)
    assert sorted(fakes.log) == ["a"] * 3 + ["b"] * 3
    assert timings["a"].median == 5.0


def test_the_device_is_waited_for_inside_the_clock():
    fakes = Fakes(a=0.0)
    pending = []

    def launch():
        pending.append(3.0)
        fakes.log.append("a")

    def synchronise():
        fakes.now += sum(pending)
        pending.clear()

    fakes.tasks["a"] = launch
    assert fakes.measure(repetitions=3, seconds=0.5, synchronise=synchronise)["a"].median == 3.0


# ---------------------------------------------------------------- contestants


@pytest.mark.parametrize(
    ("name", "weights", "tensors"),
    [
        ("mlp-0.1M", 784 * 128 + 128 + 128 * 10 + 10, 4),
        ("mlp-5M", 5_026_860, 6),
        ("mlp-27M", 26_830_730, 8),
        ("resnet20", 272_474, 65),
        ("transformer", 2_893_632, 52),
        ("resnet18", 11_173_962, 62),
        ("gpt-124M", 124_439_808, 148),
    ],
)
def test_models_have_the_advertised_size(name, weights, tensors):
    shapes = models.shapes(name)
    assert (models.count(name), len(shapes)) == (weights, tensors)
    advertised = re.search(r"-([\d.]+)M$", name)
    if advertised:
        assert round(weights / 1e6, 1 if "." in advertised[1] else None) == float(advertised[1])


def test_models_for_gpus_are_not_offered_on_a_cpu():
    assert set(models.available("cuda")) - set(models.available("cpu")) == {"resnet18", "gpt-124M"}


@pytest.mark.parametrize("name", ["mlp-0.1M", "resnet20", "transformer"])
def test_everybody_trains_on_the_same(name):
    (one, loss), (other, other_loss) = models.load(name), models.load(name)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert loss().item() == other_loss().item()


def test_the_table_has_every_tower():
    names = [tower_name(learn, h, fused) for fused in (False, True) for learn in ("lr", "lr+betas+eps") for h in HEIGHTS]
    assert set(names) < set(BARE) < set(CONTESTANTS)
    assert set(CONTESTANTS) - set(BARE) == {PUBLISHED}


@pytest.mark.parametrize("name", [name for name in (*OPTIMIZERS, PUBLISHED) if "fused, " not in name])
def test_an_iteration_trains(name):
    """By the contestant's own rule, with rates that hardly move anything: the weights are others afterwards."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training, inputs = driver(name, model), torch.randn(8, 4)
    for _ in range(3):
        training.zero_grad()
        training.backward(model(inputs).square().mean())
        training.step()
    parameters = dict(model.named_parameters()) or model[0]._parameters
    for key, value in parameters.items():
        assert not torch.equal(value, before[key])
        assert (value - before[key]).abs().max() < 1e-3


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="There are 'torch Adam'"):
        driver("adam", torch.nn.Linear(1, 1))


# ---------------------------------------------------------------- the command

SOME = (*BASELINES, "torch Adam, foreach", tower_name("lr", 1), tower_name("lr", 3), "Prodigy", PUBLISHED)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder that a tiny run leaves; five contestants at a time, so that it has several runs."""
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "extra", lambda model, name, device: 407_080 * (1 + SOME.index(name)))
        patch.setattr(command, "TOGETHER", 5)
        comparisons = command.plan(["mlp-0.1M"], SOME)
        command.bench(comparisons, lambda comparison: command.rows_of(comparison, "cpu", 2, 1e-4), out / "new", "cpu")
    return out / "new"


@pytest.fixture
def rows(measured):
    return results.read(measured / "results.csv")


def test_every_contestant_has_a_row(rows):
    for mode, expected in {"step": set(SOME) - {PUBLISHED}, "iteration": set(SOME), "memory": set(SOME)}.items():
        assert {row.contestant for row in rows if row.mode == mode} == expected
    assert {row.run for row in rows if row.mode == "step"} == {0, 1}
    assert {(row.model, row.weights) for row in rows} == {("mlp-0.1M", 101_770)}


def test_numbers_are_positive_and_ordered(rows):
    for row in rows:
        if row.mode == "memory":
            assert row.extra_mb > 0
            assert row.median_ms is None
        else:
            assert 0 < row.lower_ms <= row.median_ms <= row.upper_ms
            assert row.extra_mb is None


def test_ratios_are_quotients_within_a_run(rows):
    medians = {(row.mode, row.run, row.contestant): row.median_ms for row in rows}
    for row in rows:
        if row.mode != "memory":
            default, fused = (medians[row.mode, row.run, name] for name in BASELINES)
            assert row.over_torch_adam == pytest.approx(row.median_ms / default, rel=1e-4)
            assert row.over_torch_adam_fused == pytest.approx(row.median_ms / fused, rel=1e-4)


def test_the_csv_says_where_it_was_measured(measured):
    header = [line for line in (measured / "results.csv").read_text().splitlines() if line.startswith("#")]
    assert [line.split(":")[0] for line in header] == ["# torch", "# device", "# threads", "# date"]
    assert header[0] == f"# torch: {torch.__version__}"


def test_the_tables_show_what_the_csv_has(measured, rows):
    text = (measured / "results.md").read_text()
    tables = dict(
        zip(["step", "iteration", "memory"], re.findall(r"^\| contestant.*?(?=\n\n|\Z)", text, re.M | re.S), strict=True)
    )
    for mode, lines in tables.items():
        cells = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", lines, re.M))
        assert cells["contestant"] == "mlp-0.1M"
        assert set(cells) - {"contestant", "---"} == {row.contestant for row in rows if row.mode == mode}
        first = {row.contestant: row for row in reversed(rows) if row.mode == mode}
        for name, row in first.items():
            figure, detail = re.fullmatch(r"([\d.]+) \(([\d.e+-]+)(?: ms)?\)", cells[name]).groups()
            if mode == "memory":
                assert float(detail) == 1 + SOME.index(name)  # arrays of the size of the weights
            else:
                ratio = row.over_torch_adam_fused if mode == "step" else row.over_torch_adam
                assert float(figure) == pytest.approx(ratio, abs=0.006)
                assert float(detail) == pytest.approx(row.median_ms, rel=0.01)


def assert_picture(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000  # empty axes take less


def test_there_is_a_picture(measured):
    assert_picture(measured / "cost.png")


def test_the_picture_draws_what_was_measured(rows):
    cost = {row.contestant: row.over_torch_adam for row in rows if row.mode == "iteration"}
    lines = picture.by_height(rows)
    assert lines["eager, lr"] == [(h, cost[tower_name("lr", h)]) for h in (1, 3)]
    assert lines["published package"] == [(1, cost[PUBLISHED])]
    assert set(lines) == {"eager, lr", "published package"}
    assert [x for x, _ in picture.by_weights(rows)["eager, lr"]] == [101_770]


def test_labels_do_not_overlap():
    placed = picture.spread({"a": 1.0, "b": 1.01, "c": 4.0, "d": 1.02}, 1.1)
    assert placed["a"] == 1.0
    assert placed["c"] == 4.0
    assert placed["b"] == pytest.approx(1.1)
    assert placed["d"] == pytest.approx(1.21)


def test_finished_comparisons_survive(tmp_path):
    comparisons = command.plan(["mlp-0.1M"], BASELINES, with_memory=False)

    def measure(comparison):
        if comparison.mode == "iteration":
            raise KeyboardInterrupt
        return results.timed("mlp-0.1M", 1, "step", 0, {name: timing.Timing(2.0, 1.0, 3.0) for name in BASELINES})

    with pytest.raises(KeyboardInterrupt):
        command.bench(comparisons, measure, tmp_path, "cpu")
    assert [row.contestant for row in results.read(tmp_path / "results.csv")] == list(BASELINES)
    assert "| torch Adam | 1.00 (2.00e+03 ms) |" in (tmp_path / "results.md").read_text()


def test_everything_is_planned():
    comparisons = command.plan(models.available("cpu"))
    for model in models.available("cpu"):
        for mode, expected in {"step": BARE, "iteration": CONTESTANTS, "memory": CONTESTANTS}.items():
            mine = [c for c in comparisons if (c.model, c.mode) == (model, mode)]
            assert {name for c in mine for name in c.optimizers} == set(expected)
            if mode != "memory":
                assert all(set(BASELINES) < set(c.optimizers) and len(c.optimizers) <= 8 for c in mine)
                assert [c.run for c in mine] == list(range(len(mine)))


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--model", "gpt-124M"], "add --device cuda, or choose from mlp-0.1M"),
        (["--repetitions", "0"], "give at least 1"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, remedy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert remedy in capsys.readouterr().err


# ---------------------------------------------------------------- processes of their own


def test_memory_is_measured_in_a_child():
    """A second process counts its own memory, whatever its parent holds: two arrays for Adam, to a tenth of them."""
    held = torch.ones(150_000_000)
    with ThreadPoolExecutor() as pool:
        fewer, more = pool.map(lambda name: memory.peak("mlp-5M", name, "cpu"), [memory.BASELINE, "torch Adam, fused"])
    assert fewer < held.nbytes
    assert memory.extra("mlp-5M", "torch Adam, fused", "cpu") == more - fewer  # nothing is measured again
    assert more - fewer == pytest.approx(2 * 4 * models.count("mlp-5M"), rel=0.1)


def test_a_childs_failure_is_told():
    with pytest.raises(RuntimeError, match=r"json.tool nowhere failed with [12]:\n[^Z]*nowhere"):
        children.call("json.tool", "nowhere")


# ---------------------------------------------------------------- targets


def fake_compare(log, seconds):
    def compare(model, mode, names):
        log.append((model, mode, names))
        return {name: timing.Timing(seconds.get(name, 1.0), 0.0, 0.0) for name in names}

    return compare


def test_targets_are_measured_once_together(capsys):
    log, compiled = [], []

    def compiling():
        compiled.append(1)
        return Compilation(19.0, 4.0, 0)

    assert targets.check(targets.TARGETS, fake_compare(log, {PUBLISHED: 1.9}), compiling)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(targets.TARGETS) == 17
    assert sorted((model, mode) for model, mode, _ in log) == sorted(
        [("mlp-27M", "step"), ("mlp-0.1M", "iteration"), ("mlp-27M", "iteration"), ("resnet20", "step")]
    )
    assert compiled == [1]
    for _, _, names in log:
        assert len(set(names)) == len(names)
    assert all(line.endswith("  met") for line in lines)


@pytest.mark.parametrize(
    ("measured", "limit", "at_least", "verdict"),
    [(1.0, 1.0, False, "met"), (1.01, 1.0, False, "missed"), (1.8, 1.8, True, "met"), (1.7, 1.8, True, "missed")],
)
def test_a_target_is_met_or_missed(measured, limit, at_least, verdict, capsys):
    target = targets.Target("a line", targets.Ratio("model", "step", "above", "below"), limit, "", at_least)
    times = fake_compare([], {"above": 2 * measured, "below": 2.0})
    assert targets.check([target], times, compiling=lambda: Compilation(0.0, 0.0, 0)) == (verdict == "met")
    line = capsys.readouterr().out
    assert re.fullmatch(rf"a line +{measured:.2f} +[≤≥] {limit:g} +{verdict}\n", line)
    assert ("≥" in line) == at_least


def test_targets_name_contestants_and_models():
    for target in targets.TARGETS:
        if isinstance(target.figure, targets.Ratio):
            assert {target.figure.above, target.figure.below} <= {*OPTIMIZERS, PUBLISHED}
            assert target.figure.model in models.available("cpu")
            assert target.figure.mode in trials.MODES
        else:
            assert target.figure.figure in Compilation._fields


def test_only_an_unknown_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["targets", "--only", "nothing"])
    with pytest.raises(SystemExit, match="2"):
        targets.main()
    assert "bare step, 27M" in capsys.readouterr().err


# ---------------------------------------------------------------- whole training


@pytest.fixture
def one_thread():
    """The commands set the number of threads, for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def problem():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return whole_training.Problem()


def test_plain_training_makes_the_same_steps(problem):
    plain = list(problem.trained(12).parameters())
    for name, method in whole_training.methods(problem.state_bytes).items():
        final = problem.differentiated(12, method).final
        for a, b in zip(plain, final.values(), strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_memory_is_what_was_forecast(problem):
    steps, state = 20, problem.state_bytes
    expected = whole_training.forecasts(problem, steps)
    measured = {
        name: whole_training.peak(lambda method=method: problem.differentiated(steps, method))
        for name, method in whole_training.methods(state).items()
    }
    assert set(measured) == set(expected)
    bound = expected.pop("Implicit()")  # of what it may take
    assert measured["Implicit()"] <= bound
    for name, figure in expected.items():
        assert measured[name] == pytest.approx(figure, rel=0.1), name
    # All keep states; those at work, and what a step needs for itself, are the same but for a state or two.
    kept = {name: measured[name] / state for name in ("Reverse()", "Checkpointed()", "Checkpointed(arity=2)", "Truncated(10)")}
    assert kept["Reverse()"] - kept["Truncated(10)"] == pytest.approx(10, abs=2)
    assert kept["Reverse()"] - kept["Checkpointed()"] == pytest.approx(20 - 9, abs=2)
    assert kept["Checkpointed(arity=2)"] < kept["Checkpointed()"]


def test_whole_training_command(tmp_path, monkeypatch, capsys, one_thread):
    out = tmp_path / "new" / "a.png"
    arguments = ["--steps", "6", "2", "--repetitions", "1", "--width", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["whole_training", *arguments])
    with torch.random.fork_rng():
        whole_training.main()
    lines = re.findall(r"^ +([26])  (\S.*?) +(\d+) +(\d*) +([\d.]+)$", capsys.readouterr().out, re.M)
    names = [whole_training.PLAIN, *whole_training.methods(1)]
    assert [(int(steps), name) for steps, name, *_ in lines] == [(steps, name) for steps in (2, 6) for name in names]
    for _, name, kilobytes, forecast, ratio in lines:
        assert int(kilobytes) > 0
        assert bool(forecast) == (name != whole_training.PLAIN)
        assert float(ratio) > 0
    assert_picture(out)


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--width", "0"), ("--repetitions", "0")])
def test_whole_training_says_what_is_wrong(option, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["whole_training", option, value])
    with pytest.raises(SystemExit, match="2"):
        whole_training.main()
    assert f"{option} is 0: give at least 1" in capsys.readouterr().err


# ---------------------------------------------------------------- second derivatives


@pytest.fixture(scope="module")
def curvatures():
    """Each small network's rows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: curvature.compare(name, make(True), repetitions=1) for name, make in curvature.NETWORKS.items()}


@pytest.mark.parametrize("name", list(curvature.NETWORKS))
def test_what_is_offered_is_right(name, curvatures):
    rows = {row.mode: row for row in curvatures[name]}
    assert list(rows) == list(curvature.MODES)
    for mode in curvature.LINEARIZATIONS:
        assert not rows[mode].failure
        assert rows[mode].error < 1e-5
        assert rows[mode].memory > 1
        assert rows[mode].time > 0


def test_a_product_is_that_of_a_plain_second_derivative():
    torch.manual_seed(0)
    network = curvature.Network(models.mlp(3, 4, 2), torch.randn(5, 3))
    weights, loss = curvature.problem(network)
    vector = [torch.randn_like(w) for w in weights]
    _, naive = torch.autograd.functional.hvp(lambda *w: loss(w, [torch.tensor(2.0)]), tuple(weights), tuple(vector))
    for mode in curvature.MODES.values():
        found, (mixed,) = mode(loss, weights, [torch.tensor(2.0)], vector)
        assert curvature.distance((found, []), (list(naive), [])) < 1e-5
        slopes = torch.autograd.functional.jvp(lambda *w: loss(w, [torch.tensor(1.0)]), tuple(weights), tuple(vector))[1]
        torch.testing.assert_close(mixed, slopes)  # the loss is linear in its hyperparameter


def test_wrong_and_failing_ways_are_told(tmp_path):
    rows = [
        curvature.Row("a", "reverse-over-reverse", 3.0, 2.0, 0.0),
        curvature.Row("a", "forward-over-reverse", 4.0, 2.0, 1e-7),
        curvature.Row("a", "reverse-over-forward", 5.0, 2.0, 1e-3),
        curvature.Row("b", "reverse-over-reverse", 3.0, 2.0, 0.0),
        curvature.Row("b", "reverse-over-forward", failure="not there"),
    ]
    lines = curvature.table(rows).splitlines()[1:]
    assert [line.endswith("wrong") for line in lines] == [False, False, True, False, False]
    assert lines[-1].endswith("fails: not there")
    curvature.draw(rows, tmp_path / "a.png")
    assert_picture(tmp_path / "a.png")


def test_curvature_command(tmp_path, monkeypatch, capsys, one_thread, curvatures):
    """The figures are those of `compare`, which is slow."""
    monkeypatch.setattr(curvature, "compare", lambda name, network, repetitions: curvatures[name])
    monkeypatch.setattr(sys, "argv", ["curvature", "--quick", "--out", str(tmp_path / "a.png")])
    with torch.random.fork_rng():
        curvature.main()
    assert curvature.table([row for rows in curvatures.values() for row in rows]) in capsys.readouterr().out
    assert_picture(tmp_path / "a.png")


# ---------------------------------------------------------------- running backwards


@pytest.mark.parametrize("momentum", reversal.MOMENTA)
def test_what_is_undone_is_exact(momentum):
    problem = reversal.Problem.random(120)
    found = {name: way(problem, momentum) for name, way in reversal.WAYS.items()}
    errors = {name: reversal.error(problem, momentum, one) for name, one in found.items()}
    ours, theirs, other = "gdtuo.Reversible()", "as published (2015)", "its buffer, one fraction"
    assert errors[ours] < 1e-12
    assert errors[theirs] > 1e-8  # its run has another γ than its derivatives
    assert found[ours].stray < 1
    n = reversal.nearest(momentum).numerator
    assert n / 2 < found[other].stray < n
    if n > 1000:
        assert errors[other] > 1e3 * errors[ours]
    for name in (ours, theirs, other):
        assert found[name].bits == pytest.approx(0.152, abs=0.06)


def test_the_published_buffer_gives_back_what_it_took():
    buffer, n, d = reversal.PushPop(3), torch.tensor(9), torch.tensor(10)
    v = torch.tensor([-12345, 0, 6789])
    there = [v]
    for _ in range(20):
        there.append(buffer.multiply(there[-1], n, d))
    assert buffer.information > 0
    for before in reversed(there[:-1]):
        v = buffer.divide(there.pop(), n, d)
        assert torch.equal(v, before)
    assert buffer.empty


def test_reversal_command(monkeypatch, capsys, one_thread):
    monkeypatch.setattr(sys, "argv", ["reversal", "--steps", "3"])
    reversal.main()
    text = capsys.readouterr().out
    assert text.count("gdtuo.Reversible()") == len(reversal.MOMENTA)
    assert "momentum 0.9 = 9/10, 3 steps, log2(d / n) = 0.152" in text


# ---------------------------------------------------------------- schedulers


def test_a_schedule_warms_up_and_falls():
    factors = [schedulers.schedule(step, 100) for step in range(101)]
    assert factors[0] == factors[100] == 0
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)


def test_schedulers_command(tmp_path, monkeypatch, capsys, one_thread):
    out = tmp_path / "schedulers.png"
    monkeypatch.setattr(sys, "argv", ["schedulers", "--quick", "--out", str(out)])
    schedulers.main()
    printed = capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    for name in schedulers.OPTIMIZERS:
        (line,) = (line for line in printed.splitlines() if line.startswith(name))
        assert len(re.findall(r"\d+\.\d", line)) == 4


# ---------------------------------------------------------------- a device


@pytest.mark.parametrize("only", ["mixed precision", "whole training", "sharding"])
def test_the_checks_of_a_device_hold_on_the_cpu(only, capsys):
    assert device.main(["--device", "cpu", "--only", only]) == 0
    assert "met" in capsys.readouterr().out


def test_a_check_that_fails_or_breaks_is_counted(monkeypatch, capsys):
    def broken(where):
        yield "fine", 0.0, 0.0
        yield "wrong", math.nan, 1.0
        raise RuntimeError("lost")

    monkeypatch.setattr(device, "CHECKS", {"sharding": broken})
    assert device.main(["--device", "cpu"]) == 2
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert "RuntimeError: lost" in out


def test_without_a_gpu_one_is_told_what_runs(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        device.main([])
    assert stop.value.code == 2
    assert "--device cpu" in capsys.readouterr().err


# ---------------------------------------------------------------- together


def test_cells_together_are_timed_by_the_cell(capsys, monkeypatch):
    monkeypatch.setattr(together, "interleave", lambda steps, repetitions: {n: timing.Timing(6e-4, 6e-4, 6e-4) for n in steps})
    monkeypatch.delenv("GDTUO_DATA", raising=False)
    together.main(["--quick"])
    printed = capsys.readouterr().out
    assert re.search(r"^digits +600 +1\.00 +200 +3\.00 +60 +10\.00$", printed, re.M)


def test_a_step_together_trains_every_cell():
    step = together._step(Named("digits"), 3)
    step()
    weights = inspect.getclosurevars(step).nonlocals["nets"]
    before = [weights.weights(k)[0].detach().clone() for k in range(3)]
    step()
    assert all(not torch.equal(old, weights.weights(k)[0]) for k, old in enumerate(before))
