"""`gdtuo` on the command line: ablate, show, tasks."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from . import grids

__all__ = ["main"]

T = TypeVar("T")

EXAMPLES = """\
examples:
  gdtuo ablate --task digits --tower adam/sgd/sgd --heights 0:4 --lr 1e-8:1e1:10 --seeds 3 --out runs/digits
  gdtuo ablate --task mnist --tower adam/sgd --tower "sgd(momentum=0.9, learn='all')/adam" --out runs/mixtures
  gdtuo show runs/digits
"""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """What the command `gdtuo` does.

    Args:
        arguments: by default those of the process.

    Raises:
        SystemExit: with code 2 for bad arguments, 1 where training failed, 130 where it was interrupted.
    """
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        chosen.command(chosen)
    except ModuleNotFoundError as error:
        chosen.parser.error(f"{error}. The lab takes packages of its own: pip install 'gdtuo[lab]'")
    except (ImportError, OSError, ValueError) as error:
        chosen.parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        chosen.parser.exit(130, "\nInterrupted. Finished cells are kept: the same command goes on.\n")
    except RuntimeError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        chosen.parser.exit(1, f"{chosen.parser.prog}: {error}\nFinished cells are kept: the same command goes on.\n")


def _parser() -> Parser:
    parser = Parser(
        prog="gdtuo",
        description="Compare towers of optimizers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    ablate = commands.add_parser(
        "ablate",
        help="train towers of several heights from several learning rates; a table, pictures, CSV files",
        description="Every cell (tower, height, initial learning rate, seed) is trained and kept. Stop it, kill it: the same "
        "command goes on with what is missing. A run that diverges is a result.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ablate.add_argument("--task", required=True, help="a name that gdtuo tasks lists, or module:function of your own")
    ablate.add_argument(
        "--tower",
        required=True,
        action="append",
        metavar="TEXT",
        help='bottom first, as "adam/sgd(lr=0.02)/sgd"; may be repeated',
    )
    ablate.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the results")
    ablate.add_argument(
        "--heights", type=_parsed(grids.heights), metavar="A:B", help="hyper-optimizers above the weights' own, as 0:4 or 0,2; "
        "a tower's last level is repeated (default: as written)"
    )  # fmt: skip
    ablate.add_argument(
        "--lr", type=_parsed(grids.rates), metavar="A:B:N", help="initial learning rates of the weights, "
        "N of them equal factors apart, or a list (default: each tower's own)"
    )  # fmt: skip
    ablate.add_argument("--seeds", type=_count, default=1, metavar="N", help="0 to N-1, of weights and batches (default: 1)")
    ablate.add_argument("--epochs", type=_count, metavar="N", help="default: the task's")
    ablate.add_argument("--data", metavar="DIR", help="folder of mnist/ and fashion/ (default: $GDTUO_DATA, else downloaded)")
    ablate.add_argument("--text", metavar="FILE", help="what char-rnn reads")
    ablate.add_argument("--processes", type=_count, metavar="N", help="at a time, one thread each (default: one a core)")
    ablate.add_argument("--together", type=_count, metavar="N", help="cells that share a step (default: the task's)")
    ablate.set_defaults(command=_ablate, parser=ablate)

    show = commands.add_parser("show", help="the table and the pictures of a folder, drawn anew")
    show.add_argument("folder", type=Path, metavar="DIR", help="what ablate --out has made; it may be unfinished")
    show.set_defaults(command=_show, parser=show)

    tasks = commands.add_parser("tasks", help="what can be trained")
    tasks.set_defaults(command=_tasks, parser=tasks)
    return parser


def _parsed(parse: Callable[[str], T]) -> Callable[[str], T]:
    def checked(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no count. Give a whole number from 1 on")
    return int(text)


def _ablate(chosen: argparse.Namespace) -> None:
    from .ablation import Ablation, run
    from .figures import pyplot
    from .sweep import cores
    from .tasks import Named

    pyplot()  # what is missing is said before anything is trained
    source = Named(chosen.task, chosen.data, chosen.text)
    ablation = Ablation(source, tuple(chosen.tower), chosen.heights, chosen.lr, chosen.seeds, chosen.epochs, chosen.together)
    ablation.check()
    run(ablation, chosen.out, chosen.processes or cores())
    _report(chosen.out)


def _show(chosen: argparse.Namespace) -> None:
    _report(chosen.folder)


def _report(folder: Path) -> None:
    from .ablation import open_folder
    from .picture_errors import draw_errors
    from .picture_learned import draw_learned
    from .summary import format_table

    results = open_folder(folder)
    if not results.rows:
        raise ValueError(f"{folder} has no finished cell yet. Run gdtuo ablate first.")
    print(f"\n{format_table(results)}\n")
    draw_errors(results, folder / "errors.png")
    drawn = draw_learned(results, folder / "learned.png")
    print(f"{folder}: results.csv, learned.csv, errors.png" + ", learned.png" * drawn)


def _tasks(chosen: argparse.Namespace) -> None:
    from .tasks import TASKS

    for name, task in TASKS.items():
        print(f"{name:<10} {task.network}\n{'':<10} data: {task.needs}")
    print("\nmodule:function, of your own: a function without arguments that returns a gdtuo.lab.tasks.Task (see docs/lab.md)")
