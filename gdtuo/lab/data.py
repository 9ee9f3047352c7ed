"""Small real data sets as tensors: scikit-learn's digits, and MNIST and Fashion-MNIST from idx files.

A folder of data is named by an argument or by the environment variable GDTUO_DATA, and holds one folder a task:

    DIR/mnist/train-images-idx3-ubyte.gz    DIR/fashion/train-images-idx3-ubyte.gz
    DIR/mnist/train-labels-idx1-ubyte.gz    ...
    DIR/mnist/t10k-images-idx3-ubyte.gz
    DIR/mnist/t10k-labels-idx1-ubyte.gz

It is read, never written to. Where neither names one, the files are downloaded, once, into a cache of that layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .download import Source, cache, fetch
from .idx import read_idx

__all__ = ["FOLDER_VARIABLE", "SOURCES", "TASKS", "Data", "Examples", "digits", "idx", "load"]

#: The environment variable that names the folder of data where no argument does.
FOLDER_VARIABLE = "GDTUO_DATA"

#: Name -> its public files. They have the MD5 that torchvision gives for them; SHA-256 keeps out deliberate changes, too.
SOURCES = {
    "mnist": Source(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion": Source(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        files={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


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
        raise ImportError("The digits come with scikit-learn, which is missing: pip install 'gdtuo[lab]'.") from error
    bunch = load_digits()
    inputs = torch.as_tensor(bunch.data / 16.0, dtype=torch.float32)
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    if not 0 < test < len(inputs):
        raise ValueError(f"digits got test={test}. Keep 1 to {len(inputs) - 1} of the {len(inputs)} examples for testing.")
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    every = Examples(inputs[order], labels[order])
    return Data(train=every[test:], test=every[:test])


def idx(folder: str | Path, name: str) -> Data:
    """MNIST, or a data set in its format: the four idx files in folder/name.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if one is damaged, or images and labels differ in number.
    """
    folder = Path(folder) / name

    def read(file: str) -> np.ndarray:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"No file {folder / file}. Put it there, or name the folder that holds {name}/{file} "
                f"with --data DIR or {FOLDER_VARIABLE}=DIR, or name none to have it downloaded."
            )
        return read_idx(folder / file)

    def examples(split: str) -> Examples:
        images, labels = read(f"{split}-images-idx3-ubyte.gz"), read(f"{split}-labels-idx1-ubyte.gz")
        if len(images) != len(labels):
            raise ValueError(f"{folder} has {len(images)} {split} images, but {len(labels)} labels. Fetch the files again.")
        inputs = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)
        return Examples(inputs, torch.from_numpy(labels.astype(np.int64)))

    return Data(train=examples("train"), test=examples("t10k"))


def _public(name: str) -> Callable[[str | Path | None], Data]:
    def read(folder: str | Path | None) -> Data:
        folder = folder or os.environ.get(FOLDER_VARIABLE)
        if not folder:
            folder = cache()
            fetch(SOURCES[name], folder / name)
        return idx(folder, name)

    return read


#: Name -> how to read it, given the folder of data or None.
TASKS: dict[str, Callable[[str | Path | None], Data]] = {
    "digits": lambda folder: digits(),
    **{name: _public(name) for name in SOURCES},
}


def load(name: str, folder: str | Path | None = None) -> Data:
    """A task by its name.

    Args:
        name: one of `TASKS`.
        folder: where the idx files of "mnist" and "fashion" are. Default: the environment variable GDTUO_DATA, and where
            that is not set either $XDG_CACHE_HOME/gdtuo or ~/.cache/gdtuo, into which what is missing is downloaded.

    Raises:
        ValueError: if there is no such task, or a file is damaged.
        FileNotFoundError: if a file is missing in a folder that was named; says which and what to do.
        OSError: if a file cannot be downloaded; says why and what to do.

    Example:
        >>> load("digits").train.labels[:3].dtype
        torch.int64
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}. Use one of {', '.join(TASKS)}.")
    return TASKS[name](folder)
