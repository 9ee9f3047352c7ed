"""A naive tower: plain loops and torch.autograd, written from the papers' formulas, to compare the package with.

It shares no code with the package. Level k's shifts of group g are one tensor [blocks, hyperparameters], as in the
package, so that "the tensor" that level k + 1 optimizes in a group means the same in both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

F64 = torch.float64


def root(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def sgd(w, g, s, h, t, nesterov=False, maximize=False):
    g = (-g if maximize else g) + h["weight_decay"] * w
    b = h["momentum"] * s["b"] + (1 - h["dampening"]) * g if "b" in s else g
    return w - h["lr"] * (g + h["momentum"] * b if nesterov else b), {"b": b}


def adam(w, g, s, h, t, amsgrad=False, maximize=False, decoupled=False):
    g = -g if maximize else g
    if decoupled:
        w = w * (1 - h["lr"] * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * w
    zero = torch.zeros_like(w)
    m = h["beta1"] * s.get("m", zero) + (1 - h["beta1"]) * g
    v = h["beta2"] * s.get("v", zero) + (1 - h["beta2"]) * g**2
    largest = torch.where(v > s.get("x", zero), v, s.get("x", zero)) if amsgrad else v
    mean, square = m / (1 - h["beta1"] ** t), largest / (1 - h["beta2"] ** t)
    return w - h["lr"] * mean / (root(square) + h["eps"]), {"m": m, "v": v, "x": largest}


def adamw(*args, **switches):
    return adam(*args, decoupled=True, **switches)


def adagrad(w, g, s, h, t, maximize=False, initial_accumulator_value=0.0):
    g = (-g if maximize else g) + h["weight_decay"] * w
    total = s.get("G", torch.full_like(w, initial_accumulator_value)) + g**2
    return w - h["lr"] / (1 + (t - 1) * h["lr_decay"]) * g / (root(total) + h["eps"]), {"G": total}


def rmsprop(w, g, s, h, t, centered=False, maximize=False):
    g = (-g if maximize else g) + h["weight_decay"] * w
    zero = torch.zeros_like(w)
    square = h["alpha"] * s.get("s", zero) + (1 - h["alpha"]) * g**2
    mean = h["alpha"] * s.get("a", zero) + (1 - h["alpha"]) * g
    b = h["momentum"] * s.get("b", zero) + g / (root(square - mean**2 if centered else square) + h["eps"])
    return w - h["lr"] * b, {"s": square, "a": mean, "b": b}


def averaging(w, g, s, h, t, maximize=False):
    g = (-g if maximize else g) + h["weight_decay"] * w
    v = h["momentum"] * s.get("velocity", torch.zeros_like(w)) - (1 - h["momentum"]) * g
    return w + h["lr"] * v, {"velocity": v}


def lion(w, g, s, h, t, maximize=False):
    g = -g if maximize else g
    m = s.get("m", torch.zeros_like(w))
    sign = torch.sign(h["beta1"] * m + (1 - h["beta1"]) * g)
    return w * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * sign, {"m": h["beta2"] * m + (1 - h["beta2"]) * g}


def penalised(w, g, h, decoupled, maximize):
    g = -g if maximize else g
    return (w * (1 - h["lr"] * h["weight_decay"]), g) if decoupled else (w, g + h["weight_decay"] * w)


def nadam(w, g, s, h, t, maximize=False, decoupled_weight_decay=False):
    w, g = penalised(w, g, h, decoupled_weight_decay, maximize)
    zero = torch.zeros_like(w)
    m = h["beta1"] * s.get("m", zero) + (1 - h["beta1"]) * g
    v = h["beta2"] * s.get("v", zero) + (1 - h["beta2"]) * g**2
    now, following = (h["beta1"] * (1 - torch.exp(math.log(0.96) * (t + i) * h["momentum_decay"]) / 2) for i in (0, 1))
    product = s.get("p", 1.0) * now
    mean = following * m / (1 - product * following) + (1 - now) * g / (1 - product)
    return w - h["lr"] * mean / (root(v / (1 - h["beta2"] ** t)) + h["eps"]), {"m": m, "v": v, "p": product}


def radam(w, g, s, h, t, maximize=False, decoupled_weight_decay=False):
    w, g = penalised(w, g, h, decoupled_weight_decay, maximize)
    zero, b2 = torch.zeros_like(w), h["beta2"]
    m = h["beta1"] * s.get("m", zero) + (1 - h["beta1"]) * g
    v = b2 * s.get("v", zero) + (1 - b2) * g**2
    mean, after = m / (1 - h["beta1"] ** t), {"m": m, "v": v}
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / (1 - b2**t)
    assert (length > 5).all() or (length <= 5).all()
    if length.max() <= 5:
        return w - h["lr"] * mean, after
    r = ((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)).sqrt()
    return w - h["lr"] * mean * r * (1 - b2**t).sqrt() / (root(v) + h["eps"]), after


def adafactor(w, g, s, h, t, maximize=False):
    g, floor, fresh = -g if maximize else g, torch.finfo(w.dtype).eps, t ** h["beta2_decay"]
    if w.dim() == 2:
        rows = (1 - fresh) * s.get("R", 0.0) + fresh * torch.stack([(row**2).sum() / len(row) for row in g])
        columns = (1 - fresh) * s.get("C", 0.0) + fresh * torch.stack([(column**2).sum() / len(column) for column in g.T])
        v, after = torch.outer(rows, columns) / rows.mean(), {"R": rows, "C": columns}
    else:
        v = (1 - fresh) * s.get("V", 0.0) + fresh * g**2
        after = {"V": v}
    assert v.min() > floor**2
    u = g / v.sqrt()
    size = (w**2).mean().sqrt()
    rate = torch.where(size > h["eps2"], size, h["eps2"]) * min(h["lr"], torch.tensor(t**-0.5, dtype=F64))
    clip = (u**2).mean().sqrt() / h["d"]
    return w * (1 - h["lr"] * h["weight_decay"]) - rate * u / torch.where(clip > 1, clip, 1.0), after


def muon(w, g, s, h, t, nesterov=True, adjust_lr_fn=None):
    b = h["momentum"] * s.get("b", torch.zeros_like(w)) + (1 - h["momentum"]) * g
    direction = h["momentum"] * b + (1 - h["momentum"]) * g if nesterov else b
    smooth = direction / (direction**2).sum().sqrt()
    for _ in range(5):
        cube = smooth @ smooth.T @ smooth
        smooth = 3.4445 * smooth - 4.775 * cube + 2.0315 * smooth @ smooth.T @ cube
    # torch's values in 16 bits, the derivative of the same iteration in 64
    rough = _zeropower_via_newtonschulz(direction.detach(), (3.4445, -4.775, 2.0315), 5, 1e-7).to(w.dtype)
    n, m = w.shape
    scale = 0.2 * max(n, m) ** 0.5 if adjust_lr_fn else max(1.0, n / m) ** 0.5
    return w * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * scale * (rough + smooth - smooth.detach()), {"b": b}


def drift(w, g, s, h, t):
    mean = h["momentum"] * s.get("mean", torch.zeros_like(w)) + (1 - h["momentum"]) * g
    return w - h["lr"] * torch.tanh(3 * mean), {"mean": mean}


def normalised(w, g, s, h, t):
    anchor = s.get("anchor", w)
    return w - h["lr"] * g / (g.norm() + h["eps"]) + h["pull"] * (anchor - w), {"anchor": anchor}


RULES = {
    "drift": drift,
    "normalised": normalised,
    "sgd": sgd,
    "averaging": averaging,
    "adam": adam,
    "adamw": adamw,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "lion": lion,
    "nadam": nadam,
    "radam": radam,
    "adafactor": adafactor,
    "muon": muon,
}
POSITIVE, UNIT, REAL = "positive", "unit", "real"
DOMAINS = (
    dict.fromkeys(("lr", "eps", "weight_decay", "lr_decay", "momentum_decay", "eps2", "d"), POSITIVE)
    | dict.fromkeys(("momentum", "dampening", "beta1", "beta2", "alpha"), UNIT)
    | {"beta2_decay": REAL}
)


def forward(domain: str, value: float, shift: Tensor) -> Tensor:
    if value == 0 and domain != REAL:
        return torch.zeros_like(shift)
    if domain == POSITIVE:
        return (math.log(value) + shift).exp()
    if domain == UNIT:
        return (math.log(value / (1 - value)) + shift).sigmoid()
    return value + shift


@dataclass
class Level:
    """One level over `tensors` [groups][tensors]; `numbers`: one dict of written values for each group."""

    rule: str
    numbers: list[dict]
    learn: tuple = ()
    per: str = "group"
    kind: str = "exact"
    horizon: int = 1
    switches: dict = field(default_factory=dict)
    domains: dict = field(default_factory=dict)
    maximum: dict = field(default_factory=dict)  # name -> largest effective value
    trust: float = math.inf  # how far an update may move the weights
    above: Level | None = None
    eps: float = torch.finfo(F64).eps

    def start(self, tensors: list[list[Tensor]]) -> Level:
        self.tensors = tensors
        self.states = [[{} for _ in group] for group in tensors]
        self.t = 0
        sizes = {"group": lambda g: 1, "tensor": len, "element": lambda g: sum(x.numel() for x in g)}
        self.shifts = [torch.zeros(sizes[self.per](group), len(self.learn), dtype=F64) for group in tensors]
        self.trace = [None] * len(tensors)  # [n, blocks, H]
        self.moved = [None] * len(tensors)
        self.lengths = [[None] * len(s) for s in self.shifts]  # squares of |w|, |d|, |g| for each block
        self.hypergradient = [torch.zeros_like(s) for s in self.shifts]  # as passed upward
        if self.above:
            self.above.start([[s] for s in self.shifts])
        return self

    def values(self, g: int, shifts: Tensor) -> list[dict]:
        """The effective hyperparameters of each tensor of a group."""
        result, offset = [], 0
        for i, x in enumerate(self.tensors[g]):
            h = {name: torch.tensor(float(v), dtype=F64) for name, v in self.numbers[g].items()}
            for j, name in enumerate(self.learn):
                rows = {"group": slice(0, 1), "tensor": slice(i, i + 1), "element": slice(offset, offset + x.numel())}[self.per]
                column = shifts[rows, j]
                column = column.view(x.shape) if self.per == "element" else column[0]
                h[name] = forward(self.domains.get(name, DOMAINS[name]), self.numbers[g][name], column)
            offset += x.numel()
            result.append(h)
        return result

    def update(self, g: int, shifts: Tensor, grads: list[Tensor]) -> tuple[list, list]:
        new = []
        for x, grad, state, h in zip(self.tensors[g], grads, self.states[g], self.values(g, shifts), strict=True):
            new.append(RULES[self.rule](x, grad, state, h, self.t, **self.switches))
        return [w for w, _ in new], [{k: v.detach() for k, v in s.items()} for _, s in new]

    def pull(self, grads: list[list[Tensor]]) -> list[Tensor]:
        """What goes upward, from the gradients at the weights that the last update made."""
        result = []
        for g, group in enumerate(grads):
            if self.trace[g] is None:
                result.append(torch.zeros_like(self.shifts[g]))
                continue
            grad, z, moved = torch.cat([x.flatten() for x in group]), self.trace[g], self.moved[g]
            h = torch.einsum("n,nbh->bh", grad, z)
            if self.kind == "cosine":
                n = len(grad)
                labels = {
                    "group": torch.zeros(n),
                    "tensor": torch.cat([torch.full((x.numel(),), float(i)) for i, x in enumerate(group)]),
                    "element": torch.arange(n),
                }[self.per]
                for b in range(h.shape[0]):
                    for j in range(h.shape[1]):
                        inside = labels == b
                        if self.per == "element":
                            own = torch.stack([z[i, i, j] for i in range(n)])
                            scale = (grad.norm() / n**0.5) * (own.norm() / n**0.5)
                            quiet = own.norm() <= self.eps**0.5 * moved.norm() or scale == 0
                            h[b, j] = 0.0 if quiet else (grad[b] * own[b] / scale).clamp(-1, 1)
                        else:
                            a, b_ = grad[inside], z[inside, b, j]
                            quiet = b_.norm() <= self.eps**0.5 * moved[inside].norm() or a.norm() * b_.norm() == 0
                            h[b, j] = 0.0 if quiet else a @ b_ / (a.norm() * b_.norm())
            result.append(h)
        return result

    def limit(self, g: int, b: int, grads: list[Tensor]) -> float:
        """The largest learning rate of a block: trust |w| / |d|."""
        inside = [b] if self.per == "tensor" else range(len(grads))
        square = sum((grads[i] ** 2).sum() for i in inside)
        j, growth = self.learn.index("lr"), 0.0
        if self.lengths[g][b] is None:
            tensors = [self.tensors[g][i] for i in inside]
            whole = torch.zeros_like(self.shifts[g])
            whole[:, j] = -math.log(self.numbers[g]["lr"])  # a learning rate of 1
            moved = self.update(g, whole, grads)[0]
            w = sum((x**2).sum() + 0.03**2 * x.numel() for x in tensors)
            d = sum(((moved[i] - self.tensors[g][i]) ** 2).sum() for i in inside)
        else:
            w, d, before = self.lengths[g][b]
            places = torch.cat([torch.full((x.numel(),), i in inside) for i, x in enumerate(grads)])
            w = max(w, (self.trace[g][places, b, j] ** 2).sum())
            rate = forward(POSITIVE, self.numbers_used[g]["lr"], self.shifts_used[g][b, j])
            moved = (self.moved[g][places] ** 2).sum()
            d = moved / rate**2 if moved > 0 else d
            growth = max(0.0, square - before) if self.rule == "sgd" and before > 0 else 0.0
            square = square if square > 0 else before
        self.lengths[g][b] = (w, d, square)
        return self.trust * float((w / (d + growth)) ** 0.5)

    def limit_rate(self, g: int, b: int, shifts: Tensor, grads: list[Tensor]) -> None:
        j = self.learn.index("lr")
        shifts[b, j].clamp_(max=math.log(self.limit(g, b, grads) / self.numbers[g]["lr"]))

    def slope(self, g: int, j: int, shifts: Tensor) -> Tensor:
        name = self.learn[j]
        value, domain = self.numbers[g][name], self.domains.get(name, DOMAINS[name])
        with torch.enable_grad():
            s = shifts[:, j].clone().requires_grad_()
            (d,) = torch.autograd.grad(forward(domain, value, s).sum(), s, allow_unused=True)
        return torch.zeros_like(shifts[:, j]) if d is None else d

    def step(self, grads: list[list[Tensor]]) -> None:
        self.t += 1
        if self.above:
            self.hypergradient = self.pull(grads)
            self.used_slopes = getattr(self, "slopes", None)
            self.above.step([[h] for h in self.hypergradient])
            self.shifts = [group[0] for group in self.above.tensors]
            for g, s in enumerate(self.shifts):
                for j, name in enumerate(self.learn):
                    if name in self.maximum:
                        s[:, j].clamp_(max=math.log(self.maximum[name]) - math.log(self.numbers[g][name]))
                if self.trust < math.inf:
                    for b in range(len(s)):
                        self.limit_rate(g, b, s, grads[g])
        self.shifts_used, self.numbers_used = [s.clone() for s in self.shifts], [dict(n) for n in self.numbers]
        self.slopes = [
            torch.stack([self.slope(g, j, s) for j in range(len(self.learn))], 1) if self.learn else None
            for g, s in enumerate(self.shifts)
        ]
        for g in range(len(self.tensors)):
            new, states = self.update(g, self.shifts[g], grads[g])
            if self.above:
                z = torch.autograd.functional.jacobian(
                    lambda s, g=g: torch.cat([w.flatten() for w in self.update(g, s, grads[g])[0]]), self.shifts[g]
                )
                old = self.trace[g]
                self.trace[g] = z if old is None else (1 - 1 / self.horizon) * old + z
                self.moved[g] = torch.cat([(a - b).flatten() for a, b in zip(new, self.tensors[g], strict=True)])
            self.tensors[g], self.states[g] = [w.detach() for w in new], states

    def exact_report(self, g: int, gradients: list[Tensor], slopes) -> Tensor:
        """The derivative with respect to the effective value."""
        s = slopes[g]
        return torch.where(s == 0, 0.0, gradients[g] / torch.where(s == 0, 1.0, s))
