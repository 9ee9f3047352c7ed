"""`Level`: the stackable torch.optim.Optimizer. It knows nothing about any particular rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from . import report
from .blueprint import Blueprint
from .layout import same
from .options import Learning, Options
from .parts import Parts, Tower
from .rules import Rule
from .saved import check_group, check_state, snapshot
from .schema import Schema
from .torch_top import TorchFactory, check_factory

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Learning", "Level", "Params"]

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]] | None

#: torch's own choices between implementations of one update, recorded in the groups. "fused" compiles, "capturable" leaves
#: everything to tensors; the others have no effect.
HINTS = ("foreach", "capturable", "differentiable", "fused")


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

    `state_dict` carries every level. `load_state_dict` continues from the same tower's, or from that of the torch
    optimizer of the same name; one of another tower, optimizer or model raises ValueError and changes nothing.

    Attributes:
        rule: the update rule.
        aliases: names in `param_groups` that stand for several hyperparameters of the rule: "betas".
        marks: what every group holds, as torch's do, to tell classes with the same keys apart.

    Raises:
        ValueError, TypeError: for settings outside their range, unknown names, or an `optimizer=` that cannot
            stand above; before anything has changed.

    Example:
        >>> import torch, gdtuo
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = gdtuo.Adam(model.parameters(), optimizer=gdtuo.SGD(optimizer=gdtuo.SGD()))
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(2, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> [key for key in optimizer.hyperparameters() if key.endswith("lr")]
        ['L0/g0/lr', 'L1/g0/lr', 'L2/g0/lr']
    """

    rule: ClassVar[type[Rule]]
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    marks: ClassVar[Mapping[str, Any]] = {}

    # ---------------------------------------------------------------- construction

    def __init__(self, params: Params = None, **arguments: Any) -> None:
        self._arguments = dict(arguments)
        learning = {name: arguments.pop(name) for name in Learning.__annotations__ if name in arguments}
        schema = self._schema()
        unknown = [name for name in arguments if name not in schema.defaults and name not in HINTS]
        if unknown:
            takes = ", ".join((*schema.defaults, *Learning.__annotations__))
            raise TypeError(f"{schema.title} got unknown arguments {unknown}. It takes {takes}.")
        if arguments.get("differentiable"):
            raise ValueError(
                f"{schema.title} got differentiable=True. A tower needs no differentiable step: name a level in optimizer=, "
                "for example optimizer=gdtuo.SGD()."
            )
        self._settings = schema.defaults | dict(self.marks) | arguments
        schema.check(self._settings)
        self.check(self._settings)
        self._options = Options.parse(schema, learning)
        self._above, self._factory = self._parse_optimizer(learning.get("optimizer"))
        self._factory_name = check_factory(self._factory) if self._factory else ""
        self.state, self.param_groups = defaultdict(dict), []
        self._parts: Parts | None = None
        #: what learns besides this level's own tower: those that groups name, as templates of this level
        self._others: list[Level] = []
        self._template_of: list[int] = []  # for each group
        self._known: list[dict[str, Any]] = []  # the groups, as they were laid out
        if params is not None:
            self._bind(params, learning)

    def _bind(self, params: Any, learning: Mapping[str, Any]) -> None:
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
        defaults = self._settings | self._tower_settings()
        for blueprint in self.blueprints()[: self.height]:
            blueprint.learned([defaults])  # the groups may name other numbers: looked at below
        super().__init__(params, defaults)
        if "learn" in learning and not any(template.height for template in self._templates):
            raise ValueError(f"{title} got learn= but no optimizer= to learn with. Add optimizer=gdtuo.SGD().")
        self._learned: list[list[tuple[str, ...]]] = [[] for _ in self._templates]
        self._build()

    def _tower_settings(self) -> dict[str, Any]:
        """What a group holds of the levels above, and of how they learn."""
        if not self.height:
            return {}
        numbers = [blueprint.numbers() for blueprint in self.blueprints()[1:]]
        learn = "all" if self._options.learn is None else self._options.learn
        return {key: number for level in numbers for key, number in level.items()} | {"learn": learn, "learning": True}

    def _names_learned(self, t: int) -> list[tuple[str, ...]]:
        """Of each level of a tower that has one above it."""
        template = self._templates[t]
        groups = [group for group, own in zip(self.param_groups, self._template_of, strict=True) if own == t]
        return [blueprint.learned(groups) for blueprint in template.blueprints()[: template.height]] if groups else []

    def _build(self) -> None:
        """Lay out all arrays; what groups and state hold that fits is taken over."""
        self._parts, self._known = Parts(self.state), list(self.param_groups)
        for t in range(len(self._templates)):
            self._fill(t, {g: self.param_groups[g] for g, own in enumerate(self._template_of) if own == t})

    def _fill(self, t: int, members: Mapping[int, dict[str, Any]]) -> None:
        """Put groups under tower `t`."""
        assert self._parts is not None
        self._learned[t] = self._learned[t] or self._names_learned(t)  # a tower's first groups say what it learns
        self._parts.add(t, Tower(self._templates[t].blueprints(), self._learned[t]), members)

    @property
    def _templates(self) -> list[Level]:
        """A level with each tower that learns some groups, this one first."""
        return [self, *self._others]

    @classmethod
    def _schema(cls) -> Schema:
        if not isinstance(getattr(cls, "rule", None), type):
            raise TypeError(f"{cls.__name__} names no rule. A level is a class with `rule = YourRule`, a subclass of gdtuo.Rule.")
        return Schema(cls.__name__, cls.rule, cls.aliases)

    def blueprints(self) -> list[Blueprint]:
        """This level and those above as the engine needs them, bottom up."""
        levels = enumerate(self._levels)
        return [Blueprint(k, level._schema(), level._settings, level._options, level._factory) for k, level in levels]

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """Raise ValueError where a group's settings do not fit together; for subclasses to supply."""

    @classmethod
    def check_parameter(cls, p: Tensor) -> None:
        """Raise ValueError for a parameter that the rule cannot take; for subclasses to supply."""

    def _parse_optimizer(self, optimizer: Level | TorchFactory | None) -> tuple[Level | None, TorchFactory | None]:
        title = type(self).__name__
        given: Any = optimizer
        if optimizer is None:
            return None, None
        if isinstance(given, type) and issubclass(given, Level):
            raise TypeError(f"{title} got a class as optimizer=. Give an instance: optimizer={given.__name__}().")
        if isinstance(optimizer, Level):
            if optimizer._parts is not None:
                raise ValueError(
                    f"{title} got an optimizer= that has parameters of its own. Give one without: "
                    f"optimizer={type(optimizer).__name__}(...) with no params."
                )
            if not optimizer.rule.elementwise:
                raise ValueError(
                    f"{title} got optimizer={type(optimizer).__name__}, whose rule is not elementwise: hyperparameters of "
                    "different meaning stand side by side above the first level. Use an elementwise one, as gdtuo.SGD()."
                )
            below = optimizer._options.of_the_weights
            if below:
                raise ValueError(
                    f"{title} got optimizer={optimizer!r}: {below} concerns the level of the weights alone, which those above "
                    "follow. Give it there."
                )
            return optimizer, None
        if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
            raise TypeError(
                f"{title} got optimizer={type(optimizer).__name__}. Give a level without parameters, as gdtuo.SGD(), or a "
                "callable, as lambda params: torch.optim.Adam(params, lr=0.01)."
            )
        return None, optimizer

    def bind(self, params: Params) -> Self:
        """A new optimizer over `params` with this level's settings and tower; the template stays as it is.

        Example:
            >>> import torch, gdtuo
            >>> template = gdtuo.Adam(lr=0.01, optimizer=gdtuo.SGD())
            >>> template.bind(torch.nn.Linear(2, 1).parameters()).param_groups[0]["lr"]
            0.01
        """
        return type(self)(params, **self._arguments)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; numbers that it does not name are the constructor's.

        Besides numbers a group may name `learn`, what is learned in it, () for nothing; and `optimizer`, a level or callable
        of its own to learn with, None for nothing. Groups that name the same object have one tower.

        Raises:
            ValueError, TypeError: a number outside its range, an unknown name, or an optimizer that cannot stand above;
                before anything has changed.

        Example:
            >>> import torch, gdtuo
            >>> body, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
            >>> optimizer = gdtuo.Adam(
            ...     [{"params": body.parameters(), "learn": ()}, {"params": head.parameters(), "optimizer": gdtuo.Adam(lr=0.02)}],
            ...     optimizer=gdtuo.SGD(),
            ... )
            >>> [key for key in optimizer.hyperparameters() if key.startswith("L1") and key.endswith(("lr", "beta1"))]
            ['L1/g0/lr', 'L1/g1/lr', 'L1/g1/beta1']
        """
        if self._parts is not None or "defaults" not in self.__dict__:
            self._bound()  # after whatever somebody has done to the groups
        towers = len(self._others)
        try:
            t, group = self._prepared(param_group) if isinstance(param_group, dict) else (0, param_group)  # torch says so
            super().add_param_group(group)
        except Exception:
            del self._others[towers:]
            raise
        self._template_of.append(t)
        if t:
            for key in self._tower_settings().keys() - self._templates[t]._tower_settings().keys():
                del self.param_groups[-1][key]
        if self._parts is not None:
            self._known.append(self.param_groups[-1])
            self._learned += [[]] * (len(self._others) - towers)
            self._fill(t, {len(self.param_groups) - 1: self.param_groups[-1]})

    def _prepared(self, param_group: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """The place of a new group's tower, and a copy of the group, checked, with the numbers of the levels above."""
        group = dict(param_group)  # which the caller may use again
        misplaced = [name for name in group if name in Learning.__annotations__ and name not in ("optimizer", "learn")]
        if misplaced:
            raise TypeError(
                f"{type(self).__name__} got a group with {misplaced[0]}=, which is one for all groups. Give it to the optimizer: "
                f"{type(self).__name__}(params, {misplaced[0]}={group[misplaced[0]]!r})."
            )
        names = ("optimizer", "learn", *self._schema().defaults)
        for key in group:
            meant = [] if key in names else get_close_matches(key, names, n=1, cutoff=0.85)
            if meant:
                raise TypeError(f"{type(self).__name__} got a group with {key!r}. Did you mean {meant[0]!r}?")
        if isinstance(group.get("params"), Iterator):  # it is gone through twice
            group["params"] = list(group["params"])
        if isinstance(group.get("learn"), list):  # a change in place would pass unseen
            group["learn"] = tuple(group["learn"])
        t = self._tower_of(group.pop("optimizer")) if "optimizer" in group else 0
        settings = self._templates[t]._tower_settings()
        self._check_group({**self._settings, **settings, **group}, t)
        return t, {**settings, **group}

    def _check_group(self, group: Mapping[str, Any], t: int) -> None:
        """Raise unless a group that is to have tower `t` may be added."""
        template = self._templates[t]
        if group.get("learn") and not template.height:
            raise ValueError(
                f"{type(self).__name__} got a group with learn= but no optimizer= to learn with. Add optimizer=gdtuo.SGD()."
            )
        others = [other for other, own in zip(self.param_groups, self._template_of, strict=True) if own == t]
        for blueprint in template.blueprints():
            blueprint.schema.check(group, blueprint.prefix)
            if blueprint.height < template.height:
                blueprint.learned([*others, group])
        self.check(group)
        for p in _tensors(group.get("params")):
            self.check_parameter(p)

    def _tower_of(self, optimizer: Level | TorchFactory | None) -> int:
        """The place among the templates of this level with another tower on it; the same one for the same object."""
        for t, template in enumerate(self._templates[1:], start=1):
            if template._arguments.get("optimizer") is optimizer:
                return t
        self._others.append(type(self)(**{**self._arguments, "optimizer": optimizer}))
        return len(self._others)

    def _bound(self) -> Parts:
        if self._parts is None:
            raise self._unbound()
        # asked for an optimizer's groups by name, torch.compile watches all that stands in them
        groups = self.__dict__["param_groups"] if torch.compiler.is_compiling() else self.param_groups
        if not same(groups, self._known):
            self._regroup()
        return self._parts

    def _regroup(self) -> None:
        """Take over what somebody has put in the place of `param_groups`, as tools do that load or drop groups."""
        old, of = self._known, []
        places = {id(group): i for i, group in enumerate(old)}
        for i, group in enumerate(self.param_groups):
            copied = i if len(self.param_groups) == len(old) else None
            place = places.get(id(group), copied)
            of.append(0 if place is None else self._template_of[place])
        assert self._parts is not None
        self._parts.write_state()
        self._template_of = of
        self._complete()
        self._build()

    def _complete(self) -> None:
        """Give groups from elsewhere what they lack."""
        for group, t in zip(self.param_groups, self._template_of, strict=True):
            for name, value in (self._settings | self._templates[t]._tower_settings()).items():
                group.setdefault(name, value)  # a torch optimizer's state dict has no levels above

    def _unbound(self) -> RuntimeError:
        return RuntimeError(
            f"This {type(self).__name__} is a template without parameters. Bind it first: {self!r}.bind(model.parameters())."
        )

    def __getattr__(self, name: str) -> Any:
        # torch's own attributes, which a template does not have: hooks registered on it would be lost
        if name.startswith("_optimizer_") and self.__dict__.get("_parts", self) is None:
            raise self._unbound()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # ---------------------------------------------------------------- the tower

    @property
    def _levels(self) -> list[Level]:
        """This level and those above, bottom up, a torch optimizer on top left out."""
        return [self, *(self._above._levels if self._above else [])]

    @property
    def height(self) -> int:
        """How many optimizers stand above this one.

        Example:
            >>> import gdtuo
            >>> gdtuo.Adam(optimizer=gdtuo.SGD(optimizer=gdtuo.SGD())).height
            2
        """
        return len(self._levels) - 1 + (self._levels[-1]._factory is not None)

    def __str__(self) -> str:
        top = self._levels[-1]._factory_name
        return " / ".join([type(level).__name__.lower() for level in self._levels] + [f"torch.{top}"] * bool(top))

    def __repr__(self) -> str:
        if self._parts is not None:
            return super().__repr__()
        usual = dict.fromkeys(HINTS) | {"capturable": False, "differentiable": False} | self._schema().defaults
        shown = {key: value for key, value in self._arguments.items() if key not in usual or value != usual[key]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"

    # ---------------------------------------------------------------- stepping

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Learn from the gradients in `p.grad`, then move the weights.

        `torch.compile(optimizer.step)` makes one graph of it, with fullgraph=True too, and compiled and eager steps may follow
        each other. A number in a group that changes makes one more graph, a tensor none; others come from new patterns of absent
        gradients, from `learning` and from loading. As torch's own, a step is to be compiled before a scheduler is made, which
        wraps it, or without fullgraph. A torch optimizer on top, parameters that ranks share and sparse gradients are left to
        Python, with a warning.

        With capturable=True a step on a GPU can be captured in a CUDA graph after a few others, with gradients that stay where
        they are and tensors on the device in the place of numbers that are to change; torch.compile sets it there, for
        mode="reduce-overhead". It is of no effect where torch.compile would leave the step to Python.

        Args:
            closure: re-evaluates the model and returns the loss; called once, first, with gradients enabled.

        Returns:
            what the closure returned, else None.

        Raises:
            RuntimeError: on a template, for sparse gradients, and in a capture without capturable=True; before anything has
                changed.
        """
        parts = self._bound()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            parts.compiled_step()
        else:
            parts.step()
        return loss

    @torch.no_grad()
    def hyperstep(self) -> None:
        """Move the hyperparameters alone, by the gradients in `p.grad`; the weights stay.

        Call it after a *validation* loss's `backward()`, between the training steps: the last update is then
        judged by data that it did not see, and is not pulled back again by the next `step()`.

        Raises:
            RuntimeError: on a template, if nothing above this level could learn, or if learning is switched off.

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
        """
        parts = self._bound()
        self._require_tower()
        if not self.learning:
            raise RuntimeError("hyperstep() while learning is switched off. Set optimizer.learning = True first.")
        if torch.compiler.is_compiling():
            parts.compiled_hyperstep()
        else:
            parts.hyperstep()

    def _require_tower(self) -> None:
        if not any(template.height for template in self._templates):
            raise RuntimeError(f"This {type(self).__name__} has no optimizer= that could learn. Add optimizer=gdtuo.SGD().")

    @property
    def learning(self) -> bool:
        """Whether hyperparameters are learned. Setting it to False freezes them where they are.

        It stands in the groups as "learning" and is saved with them. After it is switched on again, learning goes on
        with the next update.
        """
        return self._parts is not None and self._parts.learning

    @learning.setter
    def learning(self, value: bool) -> None:
        parts = self._bound()
        if value:
            self._require_tower()
        if bool(value) != self.learning:
            for engine in parts.engines:
                for group in engine.groups if engine.ladder is not None else ():
                    group["learning"] = bool(value)
                engine.forget()  # what came before the pause says nothing about the updates after it

    # ---------------------------------------------------------------- looking at it

    @property
    def skipped(self) -> int:
        """How many hyper-updates of a group were skipped because a number in them was not finite. Synchronises."""
        return self._bound().skipped

    @torch.no_grad()
    def hyperparameters(self) -> dict[str, float]:
        """The effective values: "L{level}/g{group}/{name}", with one device synchronisation.

        Learned per tensor, the parameter's name or index follows; learned per element, "mean", "min" and "max" do.

        Example:
            >>> import torch, gdtuo
            >>> gdtuo.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).hyperparameters()
            {'L0/g0/lr': 0.1, 'L0/g0/momentum': 0.0, 'L0/g0/dampening': 0.0, 'L0/g0/weight_decay': 0.0}
        """
        return report.floats(self._bound().hyperparameters())

    @torch.no_grad()
    def hypergradients(self) -> dict[str, float]:
        """What the levels above see, under the keys of what is learned among `hyperparameters()`.

        With hypergradient="exact" the derivative of the loss with respect to the effective value, else the cosine.
        Between `backward()` and `step()` it belongs to the gradients in `p.grad`; after `step()` it is what the step
        used. A group that has nothing to pull back shows what it used last. Where ranks share parameters, call it on all of them.
        """
        return report.floats(self._bound().hypergradients())

    # ---------------------------------------------------------------- saving

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's.

        Raises:
            RuntimeError: on a template.
        """
        self._bound()
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, every level included; a snapshot: it does not change when the optimizer steps on."""
        self._bound().write_state()
        result = super().state_dict()
        states = {key: snapshot(state) for key, state in result["state"].items()}
        return {**result, "state": states, "param_groups": self._saved_groups(result["param_groups"])}

    def _saved_groups(self, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        parts = self._bound()
        return [snapshot({**group, **parts.top_state(g)}) for g, group in enumerate(groups)]

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name in self._TEMPLATE}
        if self._parts is None:
            return kept
        # snapshots, not the views of the engine's arrays: a pickled view takes its whole base along
        self._parts.write_state()
        kept |= super().__getstate__()
        kept["state"] = {p: snapshot(entries) for p, entries in self.state.items()}
        towers = {"_learned": self._learned, "_others": self._others, "_template_of": self._template_of}
        return kept | towers | {"param_groups": self._saved_groups(self.param_groups)}

    _TEMPLATE = ("_arguments", "_settings", "_options", "_above", "_factory", "_factory_name")

    def __setstate__(self, state: dict[str, Any]) -> None:
        if self.__dict__.get("_parts") is not None:  # torch loads a state dict through here, after all its own checks
            self._check_loaded(state["param_groups"], state["state"])
        else:
            state = {"_others": [], **state}
        self.__dict__.update(state)
        self._parts = None
        if "param_groups" not in self.__dict__:
            self.state, self.param_groups, self._template_of = defaultdict(dict), [], []
            return
        super().__setstate__({"state": defaultdict(dict, self.state)})
        self._complete()
        self._build()

    def _check_loaded(self, groups: Iterable[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Raise ValueError unless a state dict holds this tower, or no tower at all, over the same parameters."""
        self._bound()
        for g, (saved, group) in enumerate(zip(groups, self.param_groups, strict=True)):
            tower = self._templates[self._template_of[g]]
            top = f"L{tower.height}/state/" if tower._levels[-1]._factory else ""
            check_group(str(self), g, saved, group, self.blueprints()[0].numbers(), top)
            self.check(saved)
        for p, entries in states.items():
            check_state(p, entries, self.state.get(p, {}), self.rule.uniform)


def _tensors(params: Any) -> list[Tensor]:
    """The parameters among what a group may name them with; torch says what is wrong with the rest."""
    items = params if isinstance(params, Iterable) and not isinstance(params, Tensor) else [params]
    named = (x[1] if isinstance(x, tuple) and len(x) == 2 else x for x in items)
    return [p for p in named if isinstance(p, Tensor)]
