"""A text as numbers, for models that read one character at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Text", "read_text"]

#: The shortest text whose last tenth has a character and one that follows it.
SHORTEST = 20


@dataclass(frozen=True)
class Text:
    """A text, each character as its place in the vocabulary."""

    vocabulary: str  # the distinct characters of both parts, by code point
    train: Tensor  # [n] int64 in 0 … len(vocabulary) - 1
    validation: Tensor  # [m] int64, likewise


def read_text(path: str | Path) -> Text:
    """A text file; its last tenth (rounded down) is kept for validation.

    Args:
        path: of a file in UTF-8. A byte order mark is dropped; nothing else is: line ends stay as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8, or has fewer than 20 characters.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("the cat sat on the mat", encoding="utf-8")
        >>> text = read_text(path)
        >>> text.vocabulary
        ' acehmnost'
        >>> text.train[:7]
        tensor([9, 4, 3, 0, 2, 1, 9])
        >>> "".join(text.vocabulary[i] for i in text.validation)
        'at'
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Give the path of a text in UTF-8.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not a text in UTF-8 ({error.reason} at byte {error.start}). Convert it, for example with iconv -t UTF-8."
        ) from error
    if len(text) < SHORTEST:
        raise ValueError(f"{path} has {len(text)} characters. Give a text of at least {SHORTEST}: a tenth is for validation.")
    points, places = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    numbers = torch.from_numpy(places.astype(np.int64))
    start = len(text) - len(text) // 10
    return Text("".join(map(chr, points)), numbers[:start], numbers[start:])
