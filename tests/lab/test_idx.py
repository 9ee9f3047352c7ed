"""gdtuo.lab.idx: values that were written are the values that are read, and every damage is named."""

import gzip

import numpy as np
import pytest
from idx_files import idx_file

from gdtuo.lab.idx import read_idx


def test_read_idx_returns_what_was_written(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 300, 2), dtype=np.uint8)  # 300: a size of two bytes
    (tmp_path / "a.gz").write_bytes(idx_file(array))
    assert np.array_equal(read_idx(tmp_path / "a.gz"), array)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.gz"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_file(np.zeros(3, np.uint8), magic=b"\0\0\x0d\1"), "starts with 00 00 0d 01"),
        (idx_file(np.zeros(3, np.uint8), magic=b"\1\0\x08\1"), "starts with 01 00 08 01"),
        (idx_file(np.zeros(3, np.uint8), cut=1), r"holds 2 bytes.*\(3,\), which is 3"),
        (idx_file(np.zeros(0, np.uint8), cut=2), "ends within its header of 8 bytes"),
        (b"<html>not found</html>", "not a whole gzip file"),
        (gzip.compress(bytes(1000))[:-9], "not a whole gzip file"),
        (gzip.compress(bytes(1000))[:10] + b"\xff" * 40, "not a whole gzip file"),
    ],
    ids=["type", "magic", "short", "header", "html", "cut", "garbled"],
)
def test_damaged_file(tmp_path, content, message):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(ValueError, match=f"{message}.*Fetch the file again"):
        read_idx(tmp_path / "a.gz")
