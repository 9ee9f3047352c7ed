"""Small real data sets as tensors: scikit-learn's digits, and MNIST-like folders of idx files.

A folder of data is named by an argument or by the environment variable GDTUO_DATA, and holds one folder a task:

    DIR/mnist/train-images-idx3-ubyte.gz    DIR/fashion/train-images-idx3-ubyte.gz
    DIR/mnist/train-labels-idx1-ubyte.gz    ...
    DIR/mnist/t10k-images-idx3-ubyte.gz
    DIR/mnist/t10k-labels-idx1-ubyte.gz
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["FOLDER_VARIABLE", "TASKS", "Data", "Examples", "digits", "idx", "load", "read_idx"]

#: The environment variable that names the folder of data where no argument does.
FOLDER_VARIABLE = "GDTUO_DATA"

#: The type code of unsigned bytes in an idx header, the only one that these data sets use.
UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class Examples:
    """n labelled examples."""

    inputs: Tensor  # [n, features] float32 in [0, 1]
    labels: Tensor  # [n] int64 in 0 … 9

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | Tensor) -> Examples:
        """The examples that a slice or a tensor of indices names: a batch is `data.train[batch]`."""
        return Examples(self.inputs[index], self.labels[index])


class Data(NamedTuple):
    """A task: what to train on, what to test on."""

    train: Examples
    test: Examples


def digits(seed: int = 0, test: int = 360) -> Data:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels: embedded, nothing is downloaded.

    Args:
        seed: of the shuffle that splits them.
        test: how many examples are kept for testing.

    Raises:
        ImportError: without scikit-learn.

    References:
        Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998 (its test set).

    Example:
        >>> data = digits()
        >>> data.train.inputs.shape, data.test.inputs.shape
        (torch.Size([1437, 64]), torch.Size([360, 64]))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn, which is missing: pip install 'gdtuo[examples]'.") from error
    bunch = load_digits()
    inputs = torch.as_tensor(bunch.data / 16.0, dtype=torch.float32)
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    if not 0 < test < len(inputs):
        raise ValueError(f"digits got test={test}. Keep 1 to {len(inputs) - 1} of the {len(inputs)} examples for testing.")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    every = Examples(inputs[order], labels[order])
    return Data(train=every[test:], test=every[:test])


def read_idx(path: str | Path) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped, as a uint8 array.

    The format: two zero bytes, the type's code, the number of dimensions, each dimension as a big-endian int32,
    the bytes in C order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole idx file of unsigned bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No file {path}. Put it there, or name the folder that holds {path.parent.name}/{path.name} "
            f"with --data DIR or {FOLDER_VARIABLE}=DIR."
        )
    remedy = "Fetch the file again."
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}). {remedy}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise ValueError(f"{path} starts with {content[:4].hex(' ')}, an idx file of bytes with 00 00 08. {remedy}")
    count = content[3]
    start = 4 + 4 * count
    if len(content) < start:
        raise ValueError(f"{path} ends within its header of {start} bytes. {remedy}")
    shape = tuple(int(size) for size in np.frombuffer(content, ">i4", count=count, offset=4))
    size = int(np.prod(shape, dtype=np.int64))
    if len(content) - start != size:
        raise ValueError(f"{path} holds {len(content) - start} bytes, its header says {shape}, which is {size}. {remedy}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def idx(folder: str | Path, name: str) -> Data:
    """MNIST, or a data set in its format: the four idx files in folder/name.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if one is damaged, or images and labels differ in number.
    """
    folder = Path(folder) / name

    def examples(split: str) -> Examples:
        images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
        if len(images) != len(labels):
            raise ValueError(f"{folder} has {len(images)} {split} images, but {len(labels)} labels. Fetch the files again.")
        inputs = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)
        return Examples(inputs, torch.from_numpy(labels.astype(np.int64)))

    return Data(train=examples("train"), test=examples("t10k"))


def _from_folder(name: str) -> Callable[[str | Path | None], Data]:
    def read(folder: str | Path | None) -> Data:
        folder = folder or os.environ.get(FOLDER_VARIABLE)
        if not folder:
            raise FileNotFoundError(
                f"The task {name!r} reads idx files from a folder, and none is named. Give --data DIR or set "
                f"{FOLDER_VARIABLE}=DIR, where DIR holds {name}/train-images-idx3-ubyte.gz and its three companions."
            )
        return idx(folder, name)

    return read


#: Name -> how to read it, given the folder of data or None.
TASKS: dict[str, Callable[[str | Path | None], Data]] = {
    "digits": lambda folder: digits(),
    "mnist": _from_folder("mnist"),
    "fashion": _from_folder("fashion"),
}


def load(name: str, folder: str | Path | None = None) -> Data:
    """A task by its name.

    Args:
        name: one of `TASKS`.
        folder: where the idx files of "mnist" and "fashion" are. Default: the environment variable GDTUO_DATA.

    Raises:
        ValueError: if there is no such task.
        FileNotFoundError: if a file is missing, or no folder is named; says which and what to do.

    Example:
        >>> load("digits").train.labels[:3].dtype
        torch.int64
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}. Use one of {', '.join(TASKS)}.")
    return TASKS[name](folder)
