"""What was measured: rows, the CSV file that they survive in, the Markdown tables that are read."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from .optimizers import BASELINES
from .timing import Timing

__all__ = ["Row", "append", "environment", "markdown", "read", "start", "timed"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant in one comparison; None is what its mode does not measure.

    Contestants of the same model, mode and run shared a process; ratios are to the baselines of that run.
    """

    model: str
    weights: int
    mode: str  # step, iteration, memory
    run: int
    contestant: str
    median_ms: float | None = None
    lower_ms: float | None = None  # quartile
    upper_ms: float | None = None  # quartile
    over_torch_adam: float | None = None
    over_torch_adam_fused: float | None = None
    extra_mb: float | None = None  # at the peak, beyond SGD without momentum


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
KINDS = {"weights": int, "run": int, "model": str, "mode": str, "contestant": str}


def timed(model: str, weights: int, mode: str, run: int, timings: Mapping[str, Timing]) -> list[Row]:
    """The rows of one comparison, which has the baselines in it."""
    default, fused = (timings[name].median for name in BASELINES)
    rows = []
    for name, timing in timings.items():
        median, lower, upper = (1e3 * seconds for seconds in timing)
        over_default, over_fused = timing.median / default, timing.median / fused
        rows.append(Row(model, weights, mode, run, name, median, lower, upper, over_default, over_fused))
    return rows


def environment(device: str) -> dict[str, str]:
    """What a figure depends on besides the code."""
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": str(torch.get_num_threads()),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
    }


def processor() -> str:
    """The CPU's name."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------- the CSV file


def start(path: Path, facts: Mapping[str, str]) -> None:
    """A file with its facts, a comment line each, the names of its columns, and no rows yet."""
    with path.open("w", newline="") as file:
        file.writelines(f"# {name}: {fact}\n" for name, fact in facts.items())
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows, on the disk when this returns."""

    def text(value: object) -> object:
        return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value

    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([text(getattr(row, name)) for name in COLUMNS] for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    with path.open(newline="") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return [Row(**{name: KINDS.get(name, float)(text) for name, text in line.items() if text}) for line in lines]


# ---------------------------------------------------------------- the tables


def markdown(rows: Sequence[Row], facts: Mapping[str, str]) -> str:
    """A table for each mode that was measured: contestants down, models across."""
    captions = {
        "step": "Bare step, times torch's fused Adam (and the time of one)",
        "iteration": "Whole training iteration, times torch's default Adam (and the time of one)",
        "memory": "Peak memory in MB beyond that of SGD without momentum (and in arrays of the size of the weights); a fused "
        "tower's includes the compiler",
    }
    parts = ["# What a tower costs", ", ".join(f"{name} {fact}" for name, fact in facts.items())]
    for mode, caption in captions.items():
        chosen = [row for row in rows if row.mode == mode]
        if chosen:
            parts += [f"## {caption}", table(chosen)]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """Rows of one mode; a baseline that took part in several runs is shown with its first."""
    cells: dict[tuple[str, str], str] = {}
    for row in rows:
        cells.setdefault((row.contestant, row.model), cell(row))
    models = list(dict.fromkeys(row.model for row in rows))
    lines = [["contestant", *models], ["---"] + ["--:"] * len(models)]
    for contestant in dict.fromkeys(row.contestant for row in rows):
        lines.append([contestant, *(cells.get((contestant, model), "") for model in models)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Row) -> str:
    """The figure that its table is about, and what it stands for."""
    if row.extra_mb is not None:
        return f"{row.extra_mb:.0f} ({row.extra_mb * 1e6 / (4 * row.weights):.1f})"
    ratio = row.over_torch_adam_fused if row.mode == "step" else row.over_torch_adam
    return f"{ratio:.2f} ({row.median_ms:#.3g} ms)"
