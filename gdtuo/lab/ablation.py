"""An ablation: towers of several heights, from several learning rates and seeds, trained on one task and kept in a folder.

ablation.json   the task, its epochs, what is measured: what all rows have in common
results.csv     a row for each cell
learned.csv     learned hyperparameters over steps: of each cell, step and name one row
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..text import at_height, levels, tower
from .journal import Journal, Row, alone, read, replace
from .processes import in_processes
from .tasks import Named
from .training import Outcome, Start, train

__all__ = ["Ablation", "Results", "open_folder", "run"]

KEY = ("tower", "height", "lr", "seed")
FOUND = ("error", "loss", "diverged", "skipped", "learned_lr")
TRACE = (*KEY, "step", "name", "value")


class Cell(NamedTuple):
    """One training run; `tower` is the whole tower at this height."""

    tower: str
    height: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Ablation:
    """What is to be trained.

    Args:
        source: the task.
        towers: texts, as `gdtuo.tower` takes them.
        heights: of each tower; its last level is repeated where it is lower. None: as it is.
        rates: initial learning rates of the weights. None: that of each tower.
        seeds: 0, 1, ... below this.
        epochs: None: the task's.
        together: how many cells at a time; None: the task's.
    """

    source: Named
    towers: tuple[str, ...]
    heights: tuple[int, ...] | None
    rates: tuple[float, ...] | None
    seeds: int
    epochs: int | None = None
    together: int | None = None

    def built(self) -> dict[str, int]:
        """The towers to compare and their heights.

        Raises:
            ValueError: if one is not a tower.
        """
        found = {}
        for text in self.towers:
            for height in self.heights if self.heights is not None else (tower(text).height,):
                whole = at_height(text, height)
                found[whole] = tower(whole).height
        return found

    def check(self) -> None:
        """Raise an error if the task, a tower or a rate is not possible; nothing is trained.

        Raises:
            ValueError: says which.
            RuntimeError: if the task cannot make its network; its cause is the task's own error.
        """
        task = self.source.load()  # before the towers: its module may define a level
        try:
            network, other = task.model(), task.model()
        except Exception as error:
            raise RuntimeError(f"the network of {self.source.task} failed: {type(error).__name__}: {error}") from error
        if other is network:
            raise ValueError(f"The model of the task {self.source.task!r} is one network. Make a new one at each call")
        for text in self.built():
            given = re.search(r"\blr=[^,)]*", levels(text)[0])
            if given and self.rates is not None:
                raise ValueError(f"The tower {text!r} has {given[0]} for the weights, and --lr another one. Leave out one")
            for lr in self.starts(text):
                if lr == 0:
                    raise ValueError(f"The tower {text!r} starts at lr=0, where it stays. Start above 0")
                tower(text).bind([{"params": list(network.parameters()), "lr": lr}])

    def starts(self, text: str) -> tuple[float, ...]:
        """The initial learning rates of a tower."""
        return self.rates if self.rates is not None else (float(tower(text).blueprints()[0].numbers()["lr"]),)

    def jobs(self) -> list[list[Cell]]:
        """All cells; each list is trained at once."""
        n = self.together or self.source.load().together
        found = []
        for text, height in self.built().items():
            cells = [Cell(text, height, lr, seed) for seed, lr in product(range(self.seeds), self.starts(text))]
            found += [cells[i : i + n] for i in range(0, len(cells), n)]
        return found


class Results(NamedTuple):
    """What a folder holds."""

    title: str
    metric: str
    rows: list[Row]
    traces: list[Row]


def open_folder(folder: Path) -> Results:
    """Read a folder, finished or not.

    Raises:
        FileNotFoundError: if no ablation is in it.
        ValueError: if one of its files is damaged; says which.
    """
    if not (folder / "ablation.json").is_file():
        raise FileNotFoundError(f"There is no ablation in {folder}. Name a folder that gdtuo ablate --out has made")
    about = _about(folder)
    epochs = about["epochs"]
    title = f"{about['task']}, {epochs} epoch{'s' * (epochs != 1)}"
    names = ("results.csv", "learned.csv")
    rows, traces = (read(folder / name) if (folder / name).is_file() else [] for name in names)  # killed before its first row
    done = set(map(_cell, rows))
    traces = [row for row in traces if _cell(row) in done]  # one is written before its row
    return Results(title, str(about["metric"]), rows, traces)


def run(ablation: Ablation, folder: Path, processes: int) -> None:
    """Train every cell that the folder does not have yet; it may be stopped at any moment and called again.

    Raises:
        ValueError: if the folder is of another ablation, or damaged.
        BlockingIOError: if another process is at work in the folder.
        RuntimeError: if training a cell fails; its cause is the task's own error.
    """
    task = ablation.source.load()
    about: dict[str, str | int] = {**ablation.source.identity(), "epochs": ablation.epochs or task.epochs, "metric": task.metric}
    with alone(folder / "results.csv"):
        _claim(folder, about)
        _complete(ablation, folder, processes)


def _complete(ablation: Ablation, folder: Path, processes: int) -> None:
    results = Journal(folder / "results.csv", [*KEY, *FOUND])
    done = {_cell(row) for row in results.rows}
    traces = Journal(folder / "learned.csv", TRACE)
    traces.keep(lambda row: _cell(row) in done)  # a trace is written before its row
    every = ablation.jobs()
    jobs = [[cell for cell in cells if cell not in done] for cells in every]
    total, missing = sum(map(len, every)), sum(map(len, jobs))
    train_cells = partial(_train, ablation.source, ablation.epochs)
    with tqdm(total=total, initial=total - missing, unit="cell") as progress:
        for cells, outcomes in in_processes(train_cells, [job for job in jobs if job], processes):
            traces.append(row for cell, outcome in zip(cells, outcomes, strict=True) for row in _trace(cell, outcome))
            results.append(_row(cell, outcome) for cell, outcome in zip(cells, outcomes, strict=True))
            progress.update(len(cells))


def _claim(folder: Path, about: dict[str, str | int]) -> None:
    path = folder / "ablation.json"
    if not path.exists():
        replace(path, json.dumps(about, indent=2) + "\n")
        return
    had = _about(folder)
    for name in dict.fromkeys([*had, *about]):
        if had.get(name) != about.get(name):
            raise ValueError(f"{folder} holds an ablation with {name} {had.get(name)}, not {about.get(name)}. Name another --out")


def _about(folder: Path) -> dict[str, str | int]:
    path = folder / "ablation.json"
    try:
        about = json.loads(path.read_text("utf-8"))
        if isinstance(about, dict) and {"task", "epochs", "metric"} <= about.keys():
            return about
        why = "it has no task, epochs and metric"
    except ValueError as error:
        why = str(error)
    raise ValueError(f"{path} is damaged: {why}. Delete it and call gdtuo ablate as before: finished cells are kept")


def _train(source: Named, epochs: int | None, cells: Sequence[Cell]) -> list[Outcome]:
    try:
        return train(source.load(), cells[0].tower, [Start(cell.lr, cell.seed) for cell in cells], epochs)
    except Exception as error:
        cell, others = cells[0], len(cells) - 1
        which = f"{cell.tower} from lr {cell.lr:.3g}, seed {cell.seed}" + f" and {others} more" * (others > 0)
        hint = ". If --together 1 works, vmap cannot take its loss" * (others > 0)
        raise RuntimeError(f"training {which} failed: {type(error).__name__}: {error}{hint}") from error


def _cell(row: Row) -> Cell:
    return Cell(str(row["tower"]), int(row["height"]), float(row["lr"]), int(row["seed"]))


def _row(cell: Cell, outcome: Outcome) -> Row:
    return {**cell._asdict(), **{name: getattr(outcome, name) for name in FOUND}, "diverged": int(outcome.diverged)}


def _trace(cell: Cell, outcome: Outcome) -> Iterator[Row]:
    for step, table in outcome.trace.items():
        for name, value in table.items():
            yield {**cell._asdict(), "step": step, "name": name, "value": value}
