"""Small data sets in MNIST's file format."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np


def idx_file(array: np.ndarray, magic: bytes | None = None, cut: int = 0) -> bytes:
    content = (magic or bytes([0, 0, 8, array.ndim])) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:  # the same bytes whenever they are made
        file.write(content[: len(content) - cut])
    return packed.getvalue()


def idx_files() -> dict[str, bytes]:
    """A data set in MNIST's layout: 5 training and 3 test images of 2 × 3 pixels, of known values."""
    files = {}
    for split, count in (("train", 5), ("t10k", 3)):
        images = np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3)
        images[-1, -1, -1] = 255
        files[f"{split}-images-idx3-ubyte.gz"] = idx_file(images)
        files[f"{split}-labels-idx1-ubyte.gz"] = idx_file(np.arange(count, dtype=np.uint8))
    return files


def write_small_mnist(folder: Path, train: int = 600, test: int = 200) -> None:
    """Noisy images of 28 × 28 pixels, each with the bright square of its class: easy to learn."""
    (folder / "mnist").mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        images = generator.integers(0, 30, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 5)
            image[4 + 12 * row : 12 + 12 * row, 5 * column + 2 : 5 * column + 6] += 100
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (folder / "mnist" / f"{split}-{name}-ubyte.gz").write_bytes(idx_file(array))
