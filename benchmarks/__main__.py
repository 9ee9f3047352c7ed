"""Measure all contestants on all models: bare steps, whole iterations, memory.

DIR/results.csv grows with each comparison; DIR/results.md and DIR/cost.png show what is in it.

    python -m benchmarks                              # everything that runs on a CPU
    python -m benchmarks --model mlp-27M --model resnet20
    python -m benchmarks --quick                      # the smallest model, few repetitions, no memory
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from . import memory, models, picture, results, timing, trials
from .optimizers import BARE, BASELINES, CONTESTANTS

TOGETHER = 8  # contestants alive at once: on the largest models each takes gigabytes


class Comparison(NamedTuple):
    """What is measured in one go; runs count the comparisons of a model in a mode."""

    model: str
    mode: str
    run: int
    optimizers: tuple[str, ...]


def plan(chosen: Sequence[str], contestants: Sequence[str] = CONTESTANTS, with_memory: bool = True) -> list[Comparison]:
    """All comparisons; those of times have the baselines in each, so that no ratio is between two runs."""
    others = [name for name in contestants if name not in BASELINES]
    comparisons = []
    for model in chosen:
        for mode in trials.MODES:
            able = [name for name in others if mode == "iteration" or name in BARE]
            size = TOGETHER - len(BASELINES)
            parts = [able[i : i + size] for i in range(0, len(able), size)] or [[]]
            comparisons += [Comparison(model, mode, run, (*BASELINES, *part)) for run, part in enumerate(parts)]
        if with_memory:
            comparisons += [Comparison(model, "memory", 0, (name,)) for name in (*BASELINES, *others)]
    return comparisons


def rows_of(comparison: Comparison, device: str, repetitions: int, seconds: float) -> list[results.Row]:
    """Measure."""
    model, mode, run, optimizers = comparison
    weights = models.count(model)
    if mode == "memory":
        megabytes = {name: memory.extra(model, name, device) / 1e6 for name in optimizers}
        return [results.Row(model, weights, mode, run, name, extra_mb=extra) for name, extra in megabytes.items()]
    return results.timed(model, weights, mode, run, trials.compare(model, mode, optimizers, device, repetitions, seconds))


def bench(comparisons: Sequence[Comparison], measure: Callable[[Comparison], list[results.Row]], out: Path, device: str) -> None:
    """Measure one comparison after the other; whatever is finished is in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    facts = results.environment(device)
    results.start(out / "results.csv", facts)
    progress = tqdm(comparisons, unit="comparison")
    for comparison in progress:
        progress.set_description(f"{comparison.model}, {comparison.mode}")
        results.append(out / "results.csv", measure(comparison))
        (out / "results.md").write_text(results.markdown(results.read(out / "results.csv"), facts))
    picture.draw(results.read(out / "results.csv"), out / "cost.png")


def main() -> None:
    """Parse the command line, measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", choices=list(models.MODELS), help="may be given several times; default: all")
    parser.add_argument("--quick", action="store_true", help="see whether it works: the figures are no good")
    parser.add_argument("--repetitions", type=int, help=f"of each measurement of a time (default: {timing.REPETITIONS})")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/bench"), help="default: runs/bench")
    arguments = parser.parse_args()
    device, quick = arguments.device, arguments.quick
    repetitions = arguments.repetitions if arguments.repetitions is not None else 3 if quick else timing.REPETITIONS
    if repetitions < 1:
        parser.error(f"--repetitions is {repetitions}: give at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU: leave --device out to measure on the CPU")
    able = models.available(device)
    chosen = arguments.model or (able[:1] if quick else able)
    for name in chosen:
        if name not in able:
            parser.error(f"--model {name} is for GPUs: add --device cuda, or choose from {', '.join(able)}")
    seconds = timing.SECONDS / 10 if quick else timing.SECONDS
    bench(
        plan(chosen, with_memory=not quick),
        lambda comparison: rows_of(comparison, device, repetitions, seconds),
        arguments.out,
        device,
    )
    print(f"\n{(arguments.out / 'results.md').read_text()}\nThe tables, the rows and the picture: {arguments.out}")


if __name__ == "__main__":
    main()
