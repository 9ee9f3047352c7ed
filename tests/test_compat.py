"""`gdtuo.compat` against the published package itself: losses and every raw number, step by step."""

import contextlib
import copy
import gc
import importlib.metadata
import io
import pickle
import re
import sys
import types
import weakref

import pytest
import torch
from gradient_descent_the_ultimate_optimizer import gdtuo as published

import gdtuo
from gdtuo import compat

STEPS = 100
TOLERANCE = 1e-9

pytestmark = pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


PER_TENSOR = [("2.weight", 0.1), ("0.bias", 0.05), ("0.weight", 0.02)]  # 2.bias is not named

CASES = {
    "Adam alone": lambda g: g.Adam(0.01),
    "SGDPerParam alone": lambda g: g.SGDPerParam(PER_TENSOR),
    "SGD/SGD": lambda g: g.SGD(0.1, optimizer=g.SGD(0.01)),
    "SGD/SGD/SGD/SGD": lambda g: g.SGD(0.01, optimizer=g.SGD(0.01, optimizer=g.SGD(0.01, optimizer=g.SGD(0.01)))),
    "SGD with momentum/SGD": lambda g: g.SGD(0.05, 0.5, optimizer=g.SGD(0.01)),
    "SGD with momentum/SGD with momentum/SGD": lambda g: g.SGD(0.05, 0.5, g.SGD(1e-3, 0.3, optimizer=g.SGD(1e-3))),
    "SGD with a negative rate/SGD": lambda g: g.SGD(-0.05, optimizer=g.SGD(0.01)),
    "SGDPerParam/SGD": lambda g: g.SGDPerParam(PER_TENSOR, optimizer=g.SGD(0.01)),
    "SGDPerParam/SGD/SGD": lambda g: g.SGDPerParam(PER_TENSOR, optimizer=g.SGD(0.01, optimizer=g.SGD(1e-3))),
    "SGD with momentum/SGDPerParam": lambda g: g.SGD(0.05, 0.5, optimizer=g.SGDPerParam([("mu", 1e-2), ("alpha", 1e-3)])),
    "SGD with momentum/SGDPerParam of one": lambda g: g.SGD(0.05, 0.5, optimizer=g.SGDPerParam([("mu", 1e-2)])),
    "Adam/SGDPerParam/Adam": lambda g: g.Adam(0.01, optimizer=g.SGDPerParam([("beta2", 1e-2), ("alpha", 1e-4)], g.Adam(1e-6))),
    "SGDPerParam/SGDPerParam": lambda g: g.SGDPerParam(PER_TENSOR, optimizer=g.SGDPerParam([("0.bias_alpha", 0.1)])),
    "SGD without momentum/SGDPerParam of mu": lambda g: g.SGD(0.05, optimizer=g.SGDPerParam([("mu", 1e-2)], g.SGD(0.1))),
    "AdaGrad/AdaGrad": lambda g: g.AdaGrad(0.1, optimizer=g.AdaGrad(0.01)),
    "RMSProp/RMSProp": lambda g: g.RMSProp(0.01, optimizer=g.RMSProp(1e-4)),
    "RMSPropAlpha/SGD": lambda g: g.RMSPropAlpha(0.01, optimizer=g.SGD(1e-3)),
    "RMSPropAlpha/SGD, raw below 0": lambda g: g.RMSPropAlpha(0.03, optimizer=g.SGD(0.1)),
    "Adam/SGD": lambda g: g.Adam(0.01, optimizer=g.SGD(1e-4)),
    "Adam/Adam/SGD": lambda g: g.Adam(0.01, optimizer=g.Adam(1e-3, optimizer=g.SGD(1e-7))),
    "Adam with beta1 = 0/SGD": lambda g: g.Adam(0.01, 0.0, optimizer=g.SGD(1e-4)),
    "Adam with eps 1e-4/SGD": lambda g: g.Adam(0.01, 0.9, 0.99, -4.0, g.SGD(1e-4)),
    "AdamBaydin/Adam": lambda g: g.AdamBaydin(0.01, optimizer=g.Adam(1e-3)),
    "Adam/AdaGrad/RMSProp": lambda g: g.Adam(0.01, optimizer=g.AdaGrad(1e-3, optimizer=g.RMSProp(1e-5))),
}


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(16, 6, generator=generator)
        yield x, x[:, :3].abs()


def tower_of(library, optimizer):
    while not isinstance(optimizer, library.NoOpOptimizer):
        yield optimizer
        optimizer = optimizer.optimizer


def run(library, make, steps=STEPS, create_graph=True):
    """[steps, 1 + all raw numbers of all levels] and their names."""
    model, optimizer = network(), make(library)
    wrapper = library.ModuleWrapper(model, optimizer=optimizer)
    wrapper.initialize()
    rows = []
    for x, y in batches(steps):
        wrapper.begin()
        loss = (wrapper.forward(x) - y).square().mean()
        wrapper.zero_grad()
        loss.backward(create_graph=create_graph)
        wrapper.step()
        raw = {
            (k, name): t.item() for k, level in enumerate(tower_of(library, optimizer)) for name, t in level.parameters.items()
        }
        rows.append([loss.item(), *raw.values()])
    return torch.tensor(rows), ["loss", *raw], model


def disagreement(a, b):
    """The largest difference, relative where numbers are above 1; equal infinities differ by 0."""
    assert a.shape == b.shape
    assert not a.isnan().any()
    assert not b.isnan().any()
    return torch.where(a == b, 0.0, (a - b).abs() / a.abs().clamp_min(1.0)).max().item()


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_published_package(name, record_property):
    theirs, names, _ = run(published, CASES[name])
    ours, our_names, _ = run(compat, CASES[name], create_graph=False)
    assert our_names == names
    assert len(set(theirs[:, 0].tolist())) == STEPS  # it trains
    worst = disagreement(theirs, ours)
    record_property("disagreement", worst)
    print(f"{name}: worst disagreement {worst:.1e}")
    assert worst < TOLERANCE
    if "below 0" in name:
        assert theirs[:, names.index((0, "alpha"))].min() < -0.01


def test_the_cases_move_what_they_name():
    """A case in which nothing is learned would show nothing."""
    fixed = {"Adam alone", "SGDPerParam alone", "SGD without momentum/SGDPerParam of mu"}
    for name in CASES.keys() - fixed:
        ours, names, _ = run(compat, CASES[name], steps=5)
        below_top = [i for i, key in enumerate(names) if key != "loss" and key[0] == 0]
        assert (ours[0] != ours[-1])[below_top].any(), name


@pytest.mark.parametrize("name", ["SGD/SGD", "Adam/SGD", "RMSProp/RMSProp", "SGDPerParam/SGD"])
def test_float32(name):
    torch.set_default_dtype(torch.float32)
    theirs, _, _ = run(published, CASES[name], steps=25)
    ours, _, model = run(compat, CASES[name], steps=25)
    assert disagreement(theirs, ours) < 1e-5
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", CASES)
def test_create_graph_changes_nothing(name):
    assert torch.equal(run(compat, CASES[name], 10, create_graph=True)[0], run(compat, CASES[name], 10, create_graph=False)[0])


@pytest.mark.parametrize("name", CASES)
def test_prints_as_published(name):
    assert str(CASES[name](compat)) == str(CASES[name](published))


def plain(bottom, *above):
    """gdtuo's own SGD over SGD in the published coordinates."""
    tower = None
    for lr in reversed((bottom, *above)):
        settings = {} if tower is None else {"optimizer": tower, "hypergradient": "exact", "domains": {"lr": gdtuo.Real()}}
        tower = gdtuo.SGD(lr=lr, **settings)
    return tower


@pytest.mark.parametrize(("name", "rates"), [("SGD/SGD", (0.1, 0.01)), ("SGD/SGD/SGD/SGD", (0.01, 0.01, 0.01, 0.01))])
def test_plain_sgd_towers_are_the_published_ones(name, rates):
    # a Real domain given for an upper lr takes the cap of 0.2 away: in the tall tower rates exceed it
    theirs, names, _ = run(published, CASES[name])
    model = network()
    optimizer = plain(*rates).bind(model.parameters())
    rows = []
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        values = optimizer.hyperparameters()
        rows.append([loss.item(), *(values[f"L{k}/g0/lr"] for k in range(len(rates)))])
    columns = [0, *(names.index((k, "alpha")) for k in range(len(rates)))]
    assert disagreement(theirs[:, columns], torch.tensor(rows)) < TOLERANCE
    if len(rates) > 2:
        assert theirs[:, names.index((1, "alpha"))].max() > 0.2


# ---------------------------------------------------------------- whole scripts


def stub_torchvision():
    """Enough of torchvision for the published README: 512 random digits."""
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(512, 1, 28, 28, generator=generator), torch.randint(10, (512,), generator=generator)
    module = types.ModuleType("torchvision")
    module.transforms = types.SimpleNamespace(ToTensor=lambda: None)
    module.datasets = types.SimpleNamespace(MNIST=lambda *args, **kwargs: torch.utils.data.TensorDataset(images, labels))
    return module


def readme_script():
    """The published README's example, its code blocks joined."""
    text = importlib.metadata.metadata("gradient-descent-the-ultimate-optimizer").get_payload()
    return "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))


def execute(script):
    torch.manual_seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(script, "README", "exec"), {"__name__": "script"})
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number[0]):.9f}", printed.getvalue())


def test_the_published_readme_runs_with_its_import_line_changed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", stub_torchvision())
    script = readme_script()
    line = "from gradient_descent_the_ultimate_optimizer import gdtuo"
    assert script.count(line) == 1
    theirs, ours = execute(script), execute(script.replace(line, "from gdtuo import compat as gdtuo"))
    assert "EPOCH: 5, TRAIN LOSS:" in theirs
    assert ours == theirs


# ---------------------------------------------------------------- the wrapper


class Canary(torch.autograd.Function):
    """The identity, whose node in the graph carries an object that lives as long as the graph."""

    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.0, None


class Token:
    pass


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_graph_outlives_a_step(create_graph):
    model = network()
    wrapper = compat.ModuleWrapper(model, compat.Adam(optimizer=compat.SGD(1e-5)))
    tokens, counts = [], []
    gc.collect()
    gc.disable()
    try:
        for i, (x, y) in enumerate(batches(200)):
            token = Token()
            tokens.append(weakref.ref(token))
            wrapper.begin()
            loss = (Canary.apply(wrapper.forward(x), token) - y).square().mean()
            wrapper.zero_grad()
            loss.backward(create_graph=create_graph)
            wrapper.step()
            del loss, token, x, y
            assert tokens[-1]() is None, f"the graph of step {i} is alive after it"
            if i in (3, 100, 199):
                counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    finally:
        gc.enable()
    assert len(set(counts)) == 1
    assert all(p.grad.grad_fn is None for p in model.parameters())
    assert all(p.is_leaf for p in model.parameters())


def train(wrapper, steps):
    for x, y in batches(steps):
        wrapper.begin()
        loss = (wrapper.forward(x) - y).square().mean()
        wrapper.zero_grad()
        loss.backward()
        wrapper.step()
    return loss.item()


def test_wrapper_surface():
    model = network()
    wrapper = compat.ModuleWrapper(model, optimizer=compat.SGD(0.1))
    assert wrapper.parameters == dict(model.named_parameters())
    assert wrapper.module is model
    assert wrapper.initialize() is None
    wrapper.eval()
    assert not model.training
    wrapper.train()
    assert model.training
    wrapper.zero_grad()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    wrapper.begin()
    assert all(p.grad is None for p in model.parameters())


def test_wrapper_without_an_optimizer_trains_nothing():
    model = network()
    before = copy.deepcopy(model.state_dict())
    train(compat.ModuleWrapper(model), 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_optimizer_steps_a_dictionary_of_tensors():
    """What ModuleWrapper does, by hand."""
    model = network()
    params = dict(model.named_parameters())
    optimizer = compat.Adam(0.01, optimizer=compat.SGD(1e-4))
    reference = network()
    wrapper = compat.ModuleWrapper(reference, compat.Adam(0.01, optimizer=compat.SGD(1e-4)))
    train(wrapper, 5)
    for x, y in batches(5):
        optimizer.begin()
        model.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step(params)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))
    with pytest.raises(ValueError, match="Construct a new one"):
        optimizer.step(dict(reference.named_parameters()))


def test_frozen_parameters_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(compat.ModuleWrapper(model, compat.Adam(0.01, optimizer=compat.SGD(1e-4))), 5)
    assert torch.equal(model[0].weight, before)
    assert not model[0].weight.requires_grad


def test_tied_weights_stay_tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(6, 6)
            self.b = torch.nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).tanh())[:, :3]

    model = Tied()
    before = model.a.weight.clone()
    train(compat.ModuleWrapper(model, compat.Adam(0.01, optimizer=compat.SGD(1e-4))), 5)
    assert model.b.weight is model.a.weight
    assert not torch.equal(model.a.weight, before)


def test_unreached_parameters_are_updated_with_zero_gradients():
    """As there; and it makes no difference to them under a rule that does not move at zero."""
    model = network()
    model.unused = torch.nn.Parameter(torch.ones(2))
    model.forward = lambda x: model[2](model[1](model[0](x)))
    train(compat.ModuleWrapper(model, compat.Adam(0.01, optimizer=compat.SGD(1e-4))), 5)
    assert torch.equal(model.unused, torch.ones(2))


def test_a_tensor_that_is_not_named_is_left_alone():
    model = network()
    before = model[2].bias.clone()
    train(compat.ModuleWrapper(model, compat.SGDPerParam(PER_TENSOR, compat.SGD(0.01))), 5)
    assert torch.equal(model[2].bias, before)


def test_a_partly_named_learned_rate_of_rates_is_refused():
    tower = compat.SGDPerParam(PER_TENSOR, compat.SGDPerParam([("0.bias_alpha", 0.1)], compat.SGD(0.1)))
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"Name all of them.*2\.weight_alpha"):
        train(compat.ModuleWrapper(model, tower), 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tower_belongs_to_one_model():
    tower = compat.Adam(optimizer=compat.SGD(1e-5))
    train(compat.ModuleWrapper(network(), tower), 2)
    with pytest.raises(ValueError, match="Construct a new one for each model"):
        train(compat.ModuleWrapper(network(), tower), 1)
    with pytest.raises(ValueError, match="Construct a new one for each model"):
        train(compat.ModuleWrapper(network(), compat.SGD(optimizer=tower.optimizer)), 1)


# ---------------------------------------------------------------- the classes


def test_parameters_are_a_read_only_snapshot():
    optimizer = compat.Adam(optimizer=compat.SGD(1e-5))
    parameters = optimizer.parameters
    assert isinstance(parameters, dict)
    with pytest.raises(TypeError, match="param_groups"):
        parameters["alpha"] = torch.tensor(0.1)
    assert type(pickle.loads(pickle.dumps(parameters))) is dict
    train(compat.ModuleWrapper(network(), optimizer), 3)
    assert parameters["alpha"] == 0.001 != optimizer.parameters["alpha"]


@pytest.mark.parametrize("name", ["Adam", "RMSProp"])
def test_clamp_and_unclamp(name):
    theirs, ours = getattr(published, name), getattr(compat, name)
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(ours.clamp(x), theirs.clamp(x))
    assert torch.equal(ours.unclamp(ours.clamp(x)), theirs.unclamp(theirs.clamp(x)))


def test_the_wrapper_and_its_tower_can_be_copied():
    wrapper = compat.ModuleWrapper(network(), compat.Adam(0.01, optimizer=compat.SGD(1e-4)))
    train(wrapper, 5)
    for twin in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        before = twin.optimizer.parameters
        assert before == wrapper.optimizer.parameters
        reference = copy.deepcopy(wrapper)
        assert train(twin, 5) == train(reference, 5)
        assert twin.optimizer.parameters == reference.optimizer.parameters != before


@pytest.mark.parametrize("base", ["Optimizable", "SGD", "ModuleWrapper"])
def test_subclassing_names_rule(base):
    with pytest.raises(TypeError, match=r"gdtuo\.Rule.*A rule of your own' in the README"):
        type("Mine", (getattr(compat, base),), {"__module__": "script"})


@pytest.mark.parametrize(
    ("call", "kind", "remedy"),
    [
        (lambda: compat.Adam(optimizer=gdtuo.SGD()), TypeError, r"compat\.SGD\(1e-5\)"),
        (lambda: compat.Adam(optimizer=None), TypeError, r"compat\.SGD\(1e-5\)"),
        (lambda: compat.Adam(beta1=1.0), ValueError, r"\[0, 1\)"),
        (lambda: compat.RMSProp(-0.01), ValueError, ">= 0"),
        (lambda: compat.SGD(float("nan")), ValueError, "finite"),
        (lambda: compat.SGDPerParam([("a", float("inf"))]), ValueError, "finite"),
        (lambda: gdtuo.Adam(optimizer=compat.SGD(1e-5)), TypeError, r"gdtuo\.SGD\(\)"),
    ],
)
def test_bad_input(call, kind, remedy):
    with pytest.raises(kind, match=remedy):
        call()


def test_names_from_text_are_not_the_published_ones():
    assert type(gdtuo.tower("adam/sgd")) is gdtuo.Adam
    with pytest.raises(ValueError, match="There are adafactor, adagrad, adam, adamw") as caught:
        gdtuo.tower("_compatadam")
    assert "_compat" not in str(caught.value).split("There are")[1]
