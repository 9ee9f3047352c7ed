"""What a bad initial learning rate costs, from 1e-8 to 10, on different problems, by optimizers that promise not to care.

A cell is a problem, a contender, an initial learning rate and a seed. Its score is (L - L*) / (L0 - L*): L the held-out loss at
the end (the loss itself where there are no data), L0 at the start, L* the best that any cell of the problem and seed reached;
0 is the best of all, 1 has learned nothing. "Tuned" is the better of Adam and SGD at their best rate of the grid.

    python -m benchmarks.robustness --data DIR                 # everything, some hours; killed and called again, it goes on
    python -m benchmarks.robustness --data DIR --quick         # the problems that take a second, four rates, one seed
    python -m benchmarks.robustness --data DIR --contender "adam(horizon=100)/sgd(lr=0.05)"   # this tower besides
    python -m benchmarks.robustness --data DIR --aside         # the problems that no method was chosen on
    python -m benchmarks.robustness --problem "scaled logistic" --only --contender "Adam / SGD / SGD" --seeds 14
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gdtuo.lab import data, figures
from gdtuo.lab.grids import rates
from gdtuo.lab.journal import Row
from gdtuo.lab.sweep import sweep

from .contenders import CONTENDERS, PLAIN, STARTLESS, UNDER, USUAL, enter
from .problems import KEPT_ASIDE, PROBLEMS, load

__all__ = ["draw", "scores", "table", "train"]

RATES = rates("1e-8:10:10")
QUICK = ("digits MLP", "noisy quadratic", "Rosenbrock", "scaled logistic", "factorisation")
OWN = 0.0  # stands for the start of a contender that takes none
NEAR, FAR = 0.05, 0.2  # from tuned
NOTHING = 2.0  # a score beyond it, or none at all, counts as this


def train(problem: str, contender: str, lr: float, seed: int, folder: str | None = None) -> dict[str, float]:
    """The held-out loss before and after a run."""
    task = load(problem, folder)
    torch.manual_seed(seed)
    model = task.model()
    start = _evaluate(task.evaluate, model)
    running = enter(contender, model, lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(task.epochs):
        for batch in task.epoch(generator):
            running.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            running.step()
    return {"start": start, "loss": _evaluate(task.evaluate, running.evaluated())}


@torch.no_grad()
def _evaluate(evaluate: Any, model: torch.nn.Module) -> float:
    training = model.training
    value = float(evaluate(model.eval()))
    model.train(training)
    return value


def scores(rows: Sequence[Row]) -> dict[tuple[str, str, float, int], float]:
    """Of each (problem, contender, lr, seed)."""
    finite = [row for row in rows if math.isfinite(float(row["loss"]))]
    best: dict[tuple[Any, Any], float] = {}
    for row in finite:
        place = row["problem"], row["seed"]
        best[place] = min(best.get(place, math.inf), float(row["loss"]))
    found = {}
    for row in rows:
        low, start, loss = best[row["problem"], row["seed"]], float(row["start"]), float(row["loss"])
        score = (loss - low) / (start - low) if math.isfinite(loss) else NOTHING
        found[str(row["problem"]), str(row["contender"]), float(row["lr"]), int(row["seed"])] = min(score, NOTHING)
    return found


def tuned(found: dict[tuple[str, str, float, int], float]) -> dict[tuple[str, int], float]:
    """Of each problem and seed, the best score of the plain optimizers."""
    result: dict[tuple[str, int], float] = {}
    for (problem, contender, _, seed), score in found.items():
        if contender in PLAIN:
            result[problem, seed] = min(result.get((problem, seed), math.inf), score)
    return result


def table(rows: Sequence[Row]) -> str:
    """For each contender, over all its starts: shares of cells near tuned, the worst and the median distance, cells that did
    not end finite; the share near tuned of those that begin where its own default does; and of a tower, how many cells are more
    than `NEAR` behind the plain optimizer at the same start, one that takes no start behind its best."""
    found = scores(rows)
    goal = tuned(found)
    columns = (
        f"{'within 0.05':>12}{'own start':>12}{'within 0.2':>12}{'median':>9}{'worst':>9}{'not finite':>12}{'behind plain':>14}"
    )
    lines = [f"{'':34}{columns}"]
    for name in dict.fromkeys(contender for _, contender, _, _ in found):
        gaps = {(lr, p, s): score - goal[p, s] for (p, who, lr, s), score in found.items() if who == name}
        own = [gap for (lr, _, _), gap in gaps.items() if lr == USUAL.get(name, OWN)]
        broken = sum(not math.isfinite(float(row["loss"])) for row in rows if row["contender"] == name)
        worst = max(gaps.values())
        lines.append(
            f"{name:34}{_share(gaps.values(), NEAR)}{_share(own, NEAR)}{_share(gaps.values(), FAR)}{median(gaps.values()):9.3f}"
            f"{f'{worst:.2f}' if worst < NOTHING - FAR else f'> {NOTHING - FAR:.1f}':>9}{broken:12d}"
            f"{_behind(found, name):>14}"
        )
    return "\n".join(lines)


def _behind(found: Mapping[tuple[str, str, float, int], float], name: str) -> int | str:
    plain = {(p, lr, s): score for (p, who, lr, s), score in found.items() if who == UNDER.get(name)}
    if not plain:
        return "-"
    mine = {(p, lr, s): score for (p, who, lr, s), score in found.items() if who == name}
    pairs = [(score, other) for (p, lr, s), score in mine.items() for (q, start, seed), other in plain.items()
             if (q, seed) == (p, s) and lr in (start, OWN)]  # fmt: skip
    return sum(score - other > NEAR for score, other in pairs)


def _share(gaps: Collection[float], limit: float) -> str:
    return f"{100 * sum(gap <= limit for gap in gaps) / len(gaps):10.0f} %" if gaps else f"{'-':>12}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """A map for each contender: problems down, initial rates across, the darker the farther from the best."""
    found = scores(rows)
    names = list(dict.fromkeys(contender for _, contender, _, _ in found))
    problems = list(dict.fromkeys(problem for problem, _, _, _ in found))
    starts = sorted({lr for _, _, lr, _ in found} - {OWN})
    across = min(4, len(names))
    down = -(-len(names) // across)
    plt = figures.pyplot()
    size = (3.4 * across + 2.2, (0.27 * len(problems) + 0.9) * down + 0.9)
    figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(grid.flat, names, strict=False):
        own = {(p, lr): [s for (q, who, r, _), s in found.items() if (q, who) == (p, name) and r in (lr, OWN)]
               for p in problems for lr in starts}  # fmt: skip
        image = [[median(own[problem, lr] or [math.nan]) for lr in starts] for problem in problems]
        shown = axes.imshow(image, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
        axes.grid(visible=False)
        axes.set_title(name, fontsize=10)
        axes.set_xticks(range(0, len(starts), 3), [f"{lr:.0e}".replace("e-0", "e-").replace("e+0", "e") for lr in starts[::3]])
        axes.set_yticks(range(len(problems)), problems)
    for axes in grid.flat[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel("initial learning rate", fontsize=11)
    figure.colorbar(shown, ax=grid, label="score: 0 best of all, 1 nothing learned", extend="max", fraction=0.04)
    figures.save(figure, path, "What a start costs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", metavar="DIR", default=os.environ.get(data.FOLDER_VARIABLE), help="mnist/, fashion/, cifar/, text/"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/robustness"), help="folder of the results (default: runs/robustness)"
    )
    parser.add_argument("--problem", action="append", choices=(*PROBLEMS, *KEPT_ASIDE), help="only this one; may be repeated")
    parser.add_argument(
        "--contender", action="append", default=[], metavar="TEXT", help="a tower, or one of the table, besides; may be repeated"
    )
    parser.add_argument("--only", action="store_true", help="of the contenders only the plain optimizers and --contender")
    parser.add_argument("--aside", action="store_true", help="the problems that are kept aside")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}; four rates, one seed")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--processes", type=int, help="default: one a core")
    chosen = parser.parse_args(arguments)
    problems = chosen.problem or (list(KEPT_ASIDE) if chosen.aside else list(QUICK) if chosen.quick else list(PROBLEMS))
    names = list(dict.fromkeys([*(PLAIN if chosen.only else CONTENDERS), *chosen.contender]))
    starts, seeds = (RATES[::3], 1) if chosen.quick else (RATES, chosen.seeds)
    cells = [
        {"problem": problem, "contender": name, "lr": lr, "seed": seed}
        for problem in problems
        for name in names
        for lr in ((OWN,) if name in STARTLESS else starts)
        for seed in range(seeds)
    ]
    path = chosen.out / ("aside.csv" if chosen.aside else "results.csv")
    rows = sweep(partial(train, folder=chosen.data), cells, path, ("start", "loss"), chosen.processes)
    print(f"\n{table(rows)}")
    draw(rows, path.with_suffix(".png"))
    print(f"\nThe rows: {path}. The picture: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
