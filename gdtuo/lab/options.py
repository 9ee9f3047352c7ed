"""What the command lines of experiments share: the task, where its data are, and counts that are at least 1."""

from __future__ import annotations

import argparse

from . import data

__all__ = ["add_data", "add_task", "at_least_1", "load_task"]


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options --task and --data."""
    parser.add_argument("--task", choices=list(data.TASKS), default="digits")
    add_data(parser)


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option --data."""
    default = f"${data.FOLDER_VARIABLE}, else downloaded into a cache"
    parser.add_argument("--data", metavar="DIR", help=f"folder of mnist/ and fashion/ (default: {default})")


def load_task(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> data.Data:
    """What they name; exits with a line that says what is missing."""
    try:
        return data.load(arguments.task, arguments.data)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))


def at_least_1(parser: argparse.ArgumentParser, arguments: argparse.Namespace, *names: str) -> None:
    """Exit unless these options are at their default, None, or at least 1."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}: give at least 1")
