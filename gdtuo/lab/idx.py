"""The idx format, in which MNIST and its successors are published."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]

#: The type code of unsigned bytes in an idx header, the only one that these data sets use.
UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped, as a uint8 array.

    The format: two zero bytes, the type's code, the number of dimensions, each dimension as a big-endian int32,
    the bytes in C order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a whole idx file of unsigned bytes.
    """
    path = Path(path)
    remedy = "Fetch the file again."
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
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
