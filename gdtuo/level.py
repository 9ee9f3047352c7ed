"""`Level`: the stackable torch.optim.Optimizer. It knows nothing about any particular rule."""

from __future__ import annotations

import re
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from typing_extensions import Self

from . import report
from .buckets import Bucket, Run, numel
from .hyperparameters import written
from .ladder import Ladder, Plan
from .options import Learning, Options
from .pullback import Sums, elementwise_hypergradient, hypergradient
from .rules import Number, Rule
from .torch_top import TorchFactory, check_factory

__all__ = ["Learning", "Level", "Params"]

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]] | None

#: torch's own choices between implementations of one update: recorded in the groups, of no effect here.
HINTS = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}


class Level(torch.optim.Optimizer):
    r"""An optimizer whose hyperparameters another optimizer may learn: one level of a tower.

    Abstract: a subclass names its `rule`, and gets a constructor that takes the rule's hyperparameters and switches
    by name, with their defaults, besides the keywords of `Learning`.

    With parameters a level is *bound*: a `torch.optim.Optimizer` to train with. Without, it is a *template*: what
    `optimizer=` takes, and what `bind` makes optimizers of.

    One `step()`, in this order: the closure, if given, is evaluated once; the last update is pulled back with the
    gradients that stand in `p.grad`, which gives a hypergradient for every hyperparameter that is learned; the level
    above takes it as its gradient and does the same one level up; the weights move with the new hyperparameters.
    Nothing is differentiated through more than one update, and no autograd graph outlives the call.

    What is learned is a shift beside the number in `param_groups`, which stays the user's or a scheduler's:
    effective = domain.shifted(group["lr"], shift).

    Attributes:
        rule: the update rule.
        aliases: names in `param_groups` that stand for several hyperparameters of the rule: "betas".

    Example:
        >>> import torch, gdtuo
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = gdtuo.Adam(model.parameters(), optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> sorted(optimizer.hyperparameters())  # doctest: +NORMALIZE_WHITESPACE
        ['L0/g0/beta1', 'L0/g0/beta2', 'L0/g0/eps', 'L0/g0/lr', 'L0/g0/weight_decay', 'L1/g0/dampening', 'L1/g0/lr',
         'L1/g0/momentum', 'L1/g0/weight_decay', 'L2/g0/dampening', 'L2/g0/lr', 'L2/g0/momentum', 'L2/g0/weight_decay']
    """

    rule: ClassVar[type[Rule]]
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    # ---------------------------------------------------------------- construction

    def __init__(self, params: Params = None, **arguments: Any) -> None:
        title = type(self).__name__
        learning = {name: arguments.pop(name) for name in Learning.__annotations__ if name in arguments}
        self._arguments = {**arguments, **learning}
        self._settings = self._defaults() | arguments
        unknown = arguments.keys() - self._defaults().keys() - HINTS.keys()
        if unknown:
            raise TypeError(f"{title} got unknown arguments {sorted(unknown)}. It takes {', '.join(self._defaults())}.")
        if self._settings.get("differentiable"):
            raise ValueError(
                f"{title} got differentiable=True. A tower needs no differentiable step: name a level in optimizer=, "
                "for example optimizer=gdtuo.SGD()."
            )
        self._validate(self._settings)
        self._options = Options.parse(type(self), learning)
        self._above, self._factory = self._parse_optimizer(learning.get("optimizer"))
        self._factory_name = check_factory(self._factory) if self._factory else ""
        self.state, self.param_groups = defaultdict(dict), []
        self._bound = False
        if params is not None:
            self._check_params(params)
            if "learn" in learning and not self.height:
                raise ValueError(f"{title} got learn= but no optimizer= to learn with. Add optimizer=gdtuo.SGD().")
            self._learned = self._resolve_learned([self._settings])
            super().__init__(params, self._group_defaults())
            self._learned = self._resolve_learned(self.param_groups)
            self._bound = True
            self._build()

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """The settings of a group: hyperparameters under torch's names, then switches."""
        numbers = {name: default for name, (default, _) in cls.rule.hyperparameters.items()}
        for alias, names in cls.aliases.items():
            numbers[alias] = tuple(numbers.pop(name) for name in names)
        return numbers | cls.rule.switches()

    @classmethod
    def _numbers(cls, group: Mapping[str, Any], prefix: str = "") -> list[Number]:
        """The hyperparameters in a group as they are written, in the rule's order."""
        alias_of = {name: (alias, i) for alias, names in cls.aliases.items() for i, name in enumerate(names)}
        return [
            group[prefix + alias_of[name][0]][alias_of[name][1]] if name in alias_of else group[prefix + name]
            for name in cls.rule.hyperparameters
        ]

    @classmethod
    def _validate(cls, group: Mapping[str, Any], prefix: str = "") -> None:
        """Raise unless every number may be written."""
        group = {name: group[prefix + name] for name in cls._defaults() if prefix + name in group or not prefix} | (
            {} if not prefix else {name: default for name, default in cls.rule.switches().items()}
        )
        for alias, names in cls.aliases.items():
            if not isinstance(group[alias], Sequence) or len(group[alias]) != len(names):
                raise ValueError(
                    f"{cls.__name__} got {alias}={group[alias]!r}. Give {len(names)} numbers: {alias}={cls._defaults()[alias]}."
                )
        for name, number in zip(cls.rule.hyperparameters, cls._numbers(group), strict=True):
            if isinstance(number, Tensor) and number.numel() != 1:
                raise ValueError(
                    f"{cls.__name__} got a tensor of {number.numel()} numbers as {name}. Give one; per='tensor' learns several."
                )
            domain = cls.rule.hyperparameters[name][1]
            try:
                value = float(number)
            except (TypeError, ValueError) as error:
                raise TypeError(f"{cls.__name__} got {name}={number!r}. Give a number.") from error
            if not domain.allows(value):
                kind = "learning rate" if name == "lr" else name
                remedy = (
                    " Did you mean maximize=True?"
                    if name == "lr" and value < 0
                    else f" The default is {cls.rule.hyperparameters[name][0]}."
                )
                raise ValueError(f"{cls.__name__} got {name}={value}: a {kind} is {domain.text}.{remedy}")
        cls.check(group)

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """Raise ValueError where a group's settings do not fit together; a hook for subclasses."""

    def _parse_optimizer(self, optimizer: Level | TorchFactory | None) -> tuple[Level | None, TorchFactory | None]:
        title = type(self).__name__
        if optimizer is None:
            return None, None
        if isinstance(optimizer, Level):
            if optimizer._bound:
                raise ValueError(
                    f"{title} got an optimizer= that has parameters of its own. Give one without: "
                    f"optimizer={type(optimizer).__name__}(...) with no params."
                )
            if not optimizer.rule.elementwise:
                raise ValueError(
                    f"{title} got optimizer={optimizer}, whose rule is not elementwise: hyperparameters of different meaning "
                    "stand side by side above the first level. Use an elementwise rule, for example gdtuo.SGD()."
                )
            return optimizer, None
        if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
            raise TypeError(
                f"{title} got optimizer={type(optimizer).__name__}. Give a level without parameters, as gdtuo.SGD(), or a "
                "callable, as lambda params: torch.optim.Adam(params, lr=0.01)."
            )
        return None, optimizer

    def _check_params(self, params: Any) -> None:
        title = type(self).__name__
        if isinstance(params, (int, float)):
            raise TypeError(
                f"{title} got {params!r} where parameters are expected. Did you mean {title}(lr={params!r})? Scripts for the "
                "published package run with `from gdtuo import compat as gdtuo`."
            )
        if isinstance(params, Level):
            raise TypeError(f"{title} got a level where parameters are expected. Did you mean {title}(optimizer={params!r})?")
        if isinstance(params, torch.nn.Module):
            raise TypeError(f"{title} got a module where parameters are expected. Did you mean {title}(model.parameters())?")

    def bind(self, params: Params) -> Self:
        """A new optimizer over `params` with this level's settings and tower; the template stays as it is.

        Example:
            >>> import torch, gdtuo
            >>> template = gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD())
            >>> template.bind(torch.nn.Linear(2, 1).parameters()).param_groups[0]["lr"]
            0.01
        """
        return type(self)(params, **self._arguments)

    # ---------------------------------------------------------------- the tower, without numbers

    @property
    def _levels(self) -> list[Level]:
        """This level and those above, bottom up, a torch optimizer on top left out."""
        return [self, *(self._above._levels if self._above else [])]

    @property
    def _top_factory(self) -> TorchFactory | None:
        return self._levels[-1]._factory

    @property
    def height(self) -> int:
        """How many optimizers stand above this one.

        Example:
            >>> import gdtuo
            >>> gdtuo.Adam(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())).height
            2
        """
        return len(self._levels) - 1 + (self._top_factory is not None)

    def __str__(self) -> str:
        names = [type(level).__name__.lower() for level in self._levels]
        return " / ".join(names + [f"torch.{self._levels[-1]._factory_name}"] * (self._top_factory is not None))

    def __repr__(self) -> str:
        if self._bound:
            return super().__repr__()
        defaults = self._defaults()
        shown = {
            k: v for k, v in self._arguments.items() if k in Learning.__annotations__ or (k in defaults and v != defaults[k])
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    def _group_defaults(self) -> dict[str, Any]:
        defaults = dict(self._settings)
        for k, level in enumerate(self._levels[1:], start=1):
            defaults |= {f"L{k}/{name}": level._settings[name] for name in level._defaults() if name not in level.rule.switches()}
        return defaults | ({"learning": True} if self.height else {})

    def _resolve_learned(self, groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        """The names that are learned at each level that has one above it.

        Raises:
            ValueError: if a named hyperparameter cannot move from where it stands.
        """
        return [self._levels[k]._resolve(groups, k) for k in range(self.height)]

    def _resolve(self, groups: Sequence[Mapping[str, Any]], height: int) -> tuple[str, ...]:
        title, prefix = type(self).__name__, f"L{height}/" if height else ""
        own = [
            group if prefix + next(iter(self._defaults())) in group else {prefix + k: v for k, v in self._settings.items()}
            for group in groups
        ]
        numbers = [[float(number) for number in self._numbers(group, prefix)] for group in own]
        learned = []
        for i, name in enumerate(self.rule.hyperparameters):
            if self._options.learn is not None and name not in self._options.learn:
                continue
            domain = self._options.domain(type(self), name, height)
            standing = [values[i] for values in numbers]
            movable = [value for value in standing if value != 0 or domain.learnable(0.0)]
            if not movable and standing:
                if self._options.learn is None:
                    continue
                raise ValueError(
                    f"{title} cannot learn {name}: it stands at {standing[0]}, and a {type(domain).__name__} hyperparameter stays "
                    f"at 0 when it starts there. Start above 0, for example {name}=1e-4, or leave it out of learn=."
                )
            outside = [value for value in movable if not domain.learnable(value)]
            if outside:
                raise ValueError(
                    f"{title} cannot learn {name}: it stands at {outside[0]}, outside of {domain}. Start inside, or widen the "
                    f"domain: domains={{{name!r}: gdtuo.{type(domain).__name__}()}}."
                )
            learned.append(name)
        return tuple(learned)

    # ---------------------------------------------------------------- the tower, bound

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; numbers that it does not name are the constructor's.

        Raises:
            ValueError: a number outside its range, before anything has changed.
        """
        self._require_bound(building=True)
        merged = {**self.defaults, **param_group}
        self._validate(merged)
        for k, level in enumerate(self._levels[1:], start=1):
            level._validate(merged, f"L{k}/")
        super().add_param_group(param_group)
        if self._bound:
            self._build()

    def _require_bound(self, building: bool = False) -> None:
        if not self._bound and not (building and "_optimizer_step_pre_hooks" in self.__dict__):
            raise RuntimeError(
                f"This {type(self).__name__} is a template without parameters. Bind it first: {self!r}.bind(model.parameters())."
            )

    def _build(self) -> None:
        """Lay out all arrays for the groups as they are now; entries of groups and state that fit are taken over."""
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        names = tuple(self.rule.hyperparameters)
        learned = self._learned[0] if self.height else ()
        options = self._options
        self._written: list[Any] = []
        self._signature = self._structure()
        self._ladder = self._build_ladder(names)
        blocks = [self._group_blocks(group) for group in self.param_groups]
        starts = [sum(blocks[:g]) for g in range(len(blocks))]
        self._buckets: list[list[Bucket]] = []
        self._waiting: list[Tensor] = []  # frozen now; given a place when they first have a gradient
        for g, group in enumerate(self.param_groups):
            rule = self.rule(**{name: group[name] for name in self.rule.switches()})
            last = self._ladder.store.views(g)["L0/last"] if self._ladder else None
            kinds: dict[Any, list[int]] = {}
            row, rows = starts[g], []
            for i, p in enumerate(group["params"]):
                rows.append(row)
                row += {"group": 0, "tensor": 1, "element": numel(p)}[options.per]
                if p.requires_grad or p.grad is not None or p in self.state:
                    kinds.setdefault((p.device, p.dtype) if rule.elementwise else i, []).append(i)
                else:
                    self._waiting.append(p)
            self._buckets.append(
                [
                    Bucket(
                        rule,
                        names,
                        self._present(0, [group]),
                        learned,
                        options.horizon,
                        options.per,
                        [group["params"][i] for i in places],
                        places,
                        [rows[i] for i in places],
                        last,
                        self.state,
                    )
                    for places in kinds.values()
                ]
            )
        pending = [state.get("pending", 0) for bucket in self._all_buckets() for state in bucket.states]
        self._tick = max(pending, default=0)
        self._consumed: list[Any] = []  # the gradients that the last step used, to tell them from new ones

    def _build_ladder(self, names: tuple[str, ...]) -> Ladder | None:
        if not self.height:
            return None
        device = next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))
        dtype = torch.float32 if device.type == "mps" else torch.float64
        plans = []
        for k, level in enumerate(self._levels):
            options, chosen = level._options, self._learned[k] if k < len(self._learned) else ()
            domains = {name: options.domain(type(level), name, k) for name in chosen}
            rule = level.rule(**{name: level._settings[name] for name in level.rule.switches()})
            present = level._present(k, self.param_groups, chosen) if k else names
            plans.append(Plan(rule, present, domains, options.per, options.hypergradient, options.horizon))
        blocks = [self._group_blocks(group) for group in self.param_groups]
        sizes = [len(group["params"]) for group in self.param_groups]
        ladder = Ladder(plans, self._top_factory, blocks, sizes, dtype, device)
        for g, group in enumerate(self.param_groups):
            for name, view in ladder.store.views(g).items():
                old = group.get(name)
                if isinstance(old, Tensor) and old.shape == view.shape:
                    view.copy_(old)
                group[name] = view
            if ladder.top is not None:
                prefix = f"L{self.height}/state/"
                ladder.top.load(g, {k.removeprefix(prefix): group.pop(k) for k in list(group) if k.startswith(prefix)})
        skipped = [int(group.get("skipped", 0)) for group in self.param_groups]
        self._skipped = torch.tensor(skipped, device=device)
        for g, group in enumerate(self.param_groups):
            group["skipped"] = self._skipped[g]
        return ladder

    def _group_blocks(self, group: Mapping[str, Any]) -> int:
        params = group["params"]
        return {"group": 1, "tensor": len(params), "element": sum(map(numel, params))}[self._options.per]

    def _present(self, k: int, groups: Sequence[Mapping[str, Any]], learned: Sequence[str] | None = None) -> tuple[str, ...]:
        """The hyperparameters that a rule is given: all but the optional ones that stand at 0 and stay there."""
        learned = (self._learned[0] if self.height else ()) if learned is None else learned
        numbers = [self._numbers(group, f"L{k}/" if k else "") for group in groups]
        present = []
        for i, name in enumerate(self.rule.hyperparameters):
            movable = name in learned and self._options.domain(type(self), name, k).learnable(0.0)
            standing = any(isinstance(values[i], Tensor) or values[i] != 0 for values in numbers)
            if name not in self.rule.optional or movable or standing:
                present.append(name)
        return tuple(present)

    def _structure(self) -> list[Any]:
        """What the layout depends on, besides the parameters."""
        chosen = [self._learned[k] if k < len(self._learned) else () for k in range(len(self._levels))]
        return [
            [(self._present(0, [group]), *(group[name] for name in self.rule.switches())) for group in self.param_groups],
            [level._present(k, self.param_groups, chosen[k]) for k, level in enumerate(self._levels) if k],
        ]

    def _all_buckets(self) -> Iterable[Bucket]:
        return (bucket for buckets in self._buckets for bucket in buckets)

    # ---------------------------------------------------------------- one step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn from the gradients in `p.grad`, then move the weights.

        Args:
            closure: re-evaluates the model and returns the loss; called once, first, with gradients enabled.

        Returns:
            what the closure returned, else None.
        """
        self._require_bound()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        runs = self._runs()
        if self._ladder is not None and self.learning:
            self._learn(runs, first=True)
        table = None if self._ladder is None else self._table()
        self._tick += 1
        tick = self._tick if self.learning and self.height else 0
        for g, group_runs in enumerate(runs):
            for run in group_runs:
                run.bucket.update(run, self._group_numbers[g], table, tick)
        self._consumed = _gradient_marks(runs)
        return loss

    @torch.no_grad()
    def hyperstep(self) -> None:
        """Move the hyperparameters alone, by the gradients in `p.grad`; the weights stay.

        Call it after a *validation* loss's `backward()`, between the training steps: the last update is then
        judged by data that it did not see, and is not pulled back again by the next `step()`.

        Example:
            >>> import torch, gdtuo
            >>> w = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = gdtuo.SGD([w], lr=0.1, weight_decay=0.1, optimizer=gdtuo.SGD(lr=0.1), learn="weight_decay")
            >>> def backward(target):
            ...     optimizer.zero_grad()
            ...     (w - target).square().sum().backward()
            >>> for _ in range(10):
            ...     backward(2.0)  # training data
            ...     optimizer.step()
            ...     backward(0.0)  # validation data ask for smaller weights
            ...     optimizer.hyperstep()
            >>> optimizer.hyperparameters()["L0/g0/weight_decay"] > 0.2
            True

        Raises:
            RuntimeError: if nothing above this level could learn, or learning is switched off.
        """
        self._require_bound()
        if self._ladder is None:
            raise RuntimeError(f"This {type(self).__name__} has no optimizer= that could learn. Add optimizer=gdtuo.SGD().")
        if not self.learning:
            raise RuntimeError("hyperstep() while learning is switched off. Set optimizer.learning = True first.")
        runs = self._runs()
        self._learn(runs, first=False)
        self._consumed = _gradient_marks(runs)

    def _runs(self) -> list[list[Run]]:
        """What has a gradient now, by group; refuses what cannot be stepped before anything changes."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"{type(self).__name__} got a sparse gradient (shape {tuple(p.shape)}). Use sparse=False in the "
                        "embedding, or torch.optim.SparseAdam for that parameter."
                    )
        self._read()
        return [[run for bucket in buckets for run in bucket.runs()] for buckets in self._buckets]

    def _read(self) -> None:
        """Take over what users and schedulers have written into the groups."""
        levels = self._levels
        numbers = [
            [level._numbers(group, f"L{k}/" if k else "") for group in self.param_groups] for k, level in enumerate(levels)
        ]
        switches = [[group[name] for name in self.rule.switches()] for group in self.param_groups]
        tensors = any(isinstance(number, Tensor) for level in numbers for group in level for number in group)
        waiting = any(p.grad is not None for p in self._waiting)
        if not tensors and not waiting and [numbers, switches] == self._written:
            return
        if waiting or self._structure() != self._signature:
            self._build()
        self._written = [] if tensors else [numbers, switches]
        names = tuple(self.rule.hyperparameters)
        self._group_numbers = [
            {name: number for name, number in zip(names, group, strict=True) if name in self._present(0, [self.param_groups[g]])}
            for g, group in enumerate(numbers[0])
        ]
        if self._ladder is not None:
            store = self._ladder.store.flat
            columns = []
            for k, plan in enumerate(self._ladder.plans):
                indices = [list(levels[k].rule.hyperparameters).index(name) for name in plan.present]
                columns.append(written([[group[i] for i in indices] for group in numbers[k]], like=store))
            self._ladder.write(columns)
            self._base = columns[0][self._ladder.row_group[0]]

    def _table(self) -> Tensor:
        """[B, A + H] values of all hyperparameters and slopes of the learned ones, for every block of weights."""
        assert self._ladder is not None
        learned, shift = self._ladder.learned[0], self._ladder.store["L0/shift"]
        values = self._base.clone()
        values[:, self._learned_columns] = learned.effective(shift)
        slope = learned.slope(shift)
        self._ladder.store["L0/slope"].copy_(slope)
        return torch.cat((values, slope), dim=1)

    @property
    def _learned_columns(self) -> list[int]:
        names = list(self.rule.hyperparameters)
        return [names.index(name) for name in self._learned[0]]

    def _pull(self, runs: Sequence[Sequence[Run]]) -> tuple[Tensor, list[bool]]:
        """The last updates of all runs that wait for it, pulled back: [B, H], and which groups had any."""
        assert self._ladder is not None
        shift, options = self._ladder.store["L0/shift"], self._options
        count = shift.shape[1]
        elementwise = options.per == "element"
        table = shift.new_zeros(len(self.param_groups) if elementwise else len(shift), 2 * count + 2)
        products = torch.zeros_like(shift) if elementwise else None
        active = [False] * len(self.param_groups)
        for g, run in ((g, run) for g, group_runs in enumerate(runs) for run in group_runs if run.pending):
            sums, elements = run.bucket.pull(run, shift.dtype)
            blocks = run.bucket.blocks(run)
            table[slice(g, g + 1) if elementwise else blocks] += sums.to(table.device)
            if products is not None and elements is not None:
                products[blocks] = elements.to(table.device)
            active[g] = True
        eps = max((torch.finfo(bucket.params[0].dtype).eps for bucket in self._all_buckets()), default=0.0)
        sums = Sums.of_table(table, count)
        if products is None:
            return hypergradient(options.hypergradient, sums, eps), active
        rows = self._ladder.row_group[0]
        count_of = shift.new_tensor(self._ladder.blocks[0])[rows].unsqueeze(1)
        spread = Sums(*(part[rows] for part in sums))
        return elementwise_hypergradient(options.hypergradient, products, spread, count_of, eps), active

    def _learn(self, runs: Sequence[Sequence[Run]], first: bool) -> None:
        """Pull back, and let the levels above step.

        Args:
            first: whether a group that has never been updated lets them step with zero gradients, as the
                published algorithm does (it matters to the step count of an Adam above).
        """
        assert self._ladder is not None
        gradient, active = self._pull(runs)
        for g, buckets in enumerate(self._buckets):
            fresh = first and bool(runs[g]) and not any(steps for bucket in buckets for steps in bucket.steps.tolist())
            active[g] = active[g] or fresh
        if not any(active):
            return
        self._skipped += self._ladder.step(gradient, active)
        for run in (run for group_runs in runs for run in group_runs if run.pending):
            run.bucket.pulled(run)

    # ---------------------------------------------------------------- looking at it

    @property
    def learning(self) -> bool:
        """Whether hyperparameters are learned. Setting it to False freezes them where they are.

        Stands in the groups as "learning", so that it is saved. After it is switched on again, learning goes
        on with the next update.
        """
        return all(group.get("learning", False) for group in self.param_groups) and bool(self.param_groups)

    @learning.setter
    def learning(self, value: bool) -> None:
        self._require_bound()
        if value and not self.height:
            raise RuntimeError(f"This {type(self).__name__} has no optimizer= that could learn. Add optimizer=gdtuo.SGD().")
        if bool(value) == self.learning:
            return
        for group in self.param_groups:
            group["learning"] = bool(value)
        for bucket in self._all_buckets():
            bucket.forget()  # what came before the pause says nothing about the updates after it

    @property
    def skipped(self) -> int:
        """How many hyper-updates of a group were skipped because a number in them was not finite. Synchronises."""
        self._require_bound()
        return int(self._skipped.sum()) if self._ladder is not None else 0

    @torch.no_grad()
    def hyperparameters(self) -> dict[str, float]:
        """The effective values: "L{level}/g{group}/{name}", with one device synchronisation.

        Learned per tensor, the parameter's name or index follows; learned per element, "mean", "min" and "max" do.

        Example:
            >>> import torch, gdtuo
            >>> gdtuo.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).hyperparameters()
            {'L0/g0/lr': 0.1, 'L0/g0/momentum': 0.0, 'L0/g0/dampening': 0.0, 'L0/g0/weight_decay': 0.0}
        """
        self._require_bound()
        self._read()
        return report.hyperparameters(self._levels, self.param_groups, self._ladder)

    @torch.no_grad()
    def hypergradients(self) -> dict[str, float]:
        """What the levels above see, under the keys of what is learned among `hyperparameters()`.

        With hypergradient="exact" the derivative of the loss with respect to the effective value, else the cosine.
        Between `backward()` and `step()` it belongs to the gradients in `p.grad`; after `step()` it is what the step
        used. A group that has nothing to pull back shows what it used last.
        """
        self._require_bound()
        if self._ladder is None:
            return {}
        shown = [self._ladder.store[f"L{k}/hypergradient"] for k in range(len(self._ladder.learned))]
        runs = self._runs()
        if self.learning and _gradient_marks(runs) != self._consumed:
            gradient, active = self._pull(runs)
            mask = torch.tensor(active, device=gradient.device)
            reports = self._ladder.reports(self._ladder.pull(gradient))
            for k, fresh in enumerate(reports):
                shown[k] = torch.where(mask[self._ladder.row_group[k]].unsqueeze(1), fresh, shown[k])
        return report.hypergradients(self.param_groups, self._ladder, shown)

    # ---------------------------------------------------------------- saving

    def state_dict(self) -> dict[str, Any]:
        """As torch's, every level included; a snapshot: it does not change when the optimizer steps on."""
        self._require_bound()
        result = super().state_dict()
        groups = []
        for g, group in enumerate(result["param_groups"]):
            top = self._ladder.top if self._ladder else None
            extra = {f"L{self.height}/state/{name}": value for name, value in top.state(g).items()} if top else {}
            groups.append(_snapshot(group | extra))
        states = {key: _snapshot(state) for key, state in result["state"].items()}
        return {**result, "state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state dict of the same tower, or of the torch optimizer of the same name.

        Raises:
            ValueError: if it holds another tower than this one, before anything has changed.
        """
        self._require_bound()
        for g, (saved, group) in enumerate(zip(state_dict["param_groups"], self.param_groups, strict=False)):
            theirs, ours = (
                {k: tuple(v.shape) for k, v in d.items() if _TOWER_KEY.match(k) and isinstance(v, Tensor)} for d in (saved, group)
            )
            theirs = {k: v for k, v in theirs.items() if k in ours or not k.startswith(f"L{self.height}/state/")}
            if theirs and theirs != ours:
                differ = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
                raise ValueError(
                    f"The state dict holds another tower than this one ({self}): group {g} differs in {', '.join(differ[:5])}. "
                    "Build the optimizer with the optimizer=, learn= and per= that it was saved with."
                )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        ladder = self.__dict__.get("_ladder")
        state = dict(super().__getstate__()) if self._bound else {"state": {}, "param_groups": []}
        if self._bound:
            state["state"] = {p: _snapshot(entries) for p, entries in self.state.items()}
            groups = [_snapshot(group) for group in self.param_groups]
            if ladder is not None and ladder.top is not None:
                for g, group in enumerate(groups):
                    group |= {f"L{self.height}/state/{name}": value.clone() for name, value in ladder.top.state(g).items()}
            state["param_groups"] = groups
        tower = ("_arguments", "_settings", "_options", "_above", "_factory", "_factory_name", "_bound", "_learned")
        return state | {name: self.__dict__[name] for name in tower if name in self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._bound:
            super().__setstate__({"state": defaultdict(dict, self.state)})
            self._build()


_TOWER_KEY = re.compile(r"L\d+/")


def _snapshot(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose tensors no longer change; parameters stay themselves."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in entries.items()}


def _gradient_marks(runs: Sequence[Sequence[Run]]) -> list[tuple[Any, int]]:
    """Which gradients stand in a run, without keeping them alive: the first one's identity and version."""
    gradients = [run.params[0].grad for group_runs in runs for run in group_runs]
    return [(weakref.ref(gradient), gradient._version) for gradient in gradients if gradient is not None]
