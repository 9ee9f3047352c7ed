"""gdtuo.lab.data: values that were written are the values that are read, and every damage is named."""

import gzip
import os
import struct
import sys

import numpy as np
import pytest
import torch

from gdtuo.lab import data


def write_idx(path, array, magic=None, cut=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = magic or bytes([0, 0, 8, array.ndim])
    content = head + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content[: len(content) - cut]))


@pytest.fixture
def folder(tmp_path):
    """A data set in MNIST's layout: 5 training and 3 test images of 2 × 3 pixels, of known values."""
    for split, count in (("train", 5), ("t10k", 3)):
        images = np.arange(count * 6, dtype=np.uint8).reshape(count, 2, 3)
        images[-1, -1, -1] = 255
        write_idx(tmp_path / "mnist" / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / "mnist" / f"{split}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


def test_read_idx_returns_what_was_written(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (4, 300, 2), dtype=np.uint8)  # 300: a size of two bytes
    write_idx(tmp_path / "a.gz", array)
    assert np.array_equal(data.read_idx(tmp_path / "a.gz"), array)


def test_idx_scales_and_flattens(folder):
    read = data.idx(folder, "mnist")
    assert len(read.train) == 5
    assert len(read.test) == 3
    assert read.train.inputs.dtype == torch.float32
    torch.testing.assert_close(read.train.inputs[1], torch.tensor([6, 7, 8, 9, 10, 11]) / 255)
    assert read.train.inputs[-1, -1] == 1
    assert read.test.labels.tolist() == [0, 1, 2]
    assert read.train[torch.tensor([3, 1])].labels.tolist() == [3, 1]


def test_folder_comes_from_argument_then_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(folder))
    assert len(data.load("mnist").train) == 5
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        data.load("mnist", tmp_path / "elsewhere")


def test_no_folder(monkeypatch):
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError, match=r"--data DIR or set GDTUO_DATA=DIR.*fashion/train-images-idx3-ubyte.gz"):
        data.load("fashion")


def test_missing_file_is_named(folder):
    (folder / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte.gz.*--data DIR or GDTUO_DATA=DIR"):
        data.idx(folder, "mnist")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: write_idx(path, np.zeros(3, np.uint8), magic=b"\0\0\x0d\1"), "starts with 00 00 0d 01"),
        (lambda path: write_idx(path, np.zeros(3, np.uint8), magic=b"\1\0\x08\1"), "starts with 01 00 08 01"),
        (lambda path: write_idx(path, np.zeros(3, np.uint8), cut=1), r"holds 2 bytes.*\(3,\), which is 3"),
        (lambda path: write_idx(path, np.zeros(0, np.uint8), cut=2), "ends within its header of 8 bytes"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "not a whole gzip file"),
        (lambda path: path.write_bytes(gzip.compress(bytes(1000))[:-9]), "not a whole gzip file"),
    ],
    ids=["type", "magic", "short", "header", "html", "cut"],
)
def test_damaged_file(tmp_path, write, message):
    write(tmp_path / "a.gz")
    with pytest.raises(ValueError, match=f"{message}.*Fetch the file again"):
        data.read_idx(tmp_path / "a.gz")


def test_images_and_labels_of_different_number(folder):
    write_idx(folder / "mnist" / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="5 train images, but 4 labels"):
        data.idx(folder, "mnist")


def test_unknown_task():
    with pytest.raises(ValueError, match=r"no task 'minst'. Use one of digits, mnist, fashion"):
        data.load("minst")


def test_digits():
    read = data.digits()
    assert read.train.inputs.shape == (1437, 64)
    assert read.test.inputs.shape == (360, 64)
    every = torch.cat((read.train.inputs, read.test.inputs))
    assert every.dtype == torch.float32
    assert (every.min(), every.max()) == (0, 1)
    # the split moves examples around and loses none: sums and counts are those of scikit-learn's array
    assert every.double().sum().item() * 16 == 561718
    labels = torch.cat((read.train.labels, read.test.labels))
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.equal(read.train.inputs, data.load("digits").train.inputs)
    assert not torch.equal(read.train.inputs, data.digits(seed=1).train.inputs)
    assert len(data.digits(test=1000).test) == 1000


@pytest.mark.parametrize("test", [0, 1797])
def test_digits_split_leaves_both_sides_something(test):
    with pytest.raises(ValueError, match=f"test={test}. Keep 1 to 1796"):
        data.digits(test=test)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'gdtuo\[examples\]'"):
        data.digits()


FOLDER = os.environ.get(data.FOLDER_VARIABLE)

if FOLDER:  # .ci/run sets it where there are data; without, there is nothing to compare with

    @pytest.mark.parametrize("name", ["mnist", "fashion"])
    def test_the_real_files(name):
        read = data.load(name)
        assert read.train.inputs.shape == (60000, 784)
        assert read.test.inputs.shape == (10000, 784)
        assert torch.bincount(read.test.labels).sum() == 10000
        assert read.train.labels.unique().tolist() == list(range(10))
