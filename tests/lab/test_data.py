"""gdtuo.lab.data: values that were written are read, from where they should be; what is missing is fetched or named."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_files import idx_file, idx_files
from served import mirror

from gdtuo.lab import data
from gdtuo.lab.download import Source, sha256


def written(folder, name="mnist"):
    """A folder of data, with one task."""
    (folder / name).mkdir(parents=True)
    for file, content in idx_files().items():
        (folder / name / file).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "data")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Where no folder is named: a mirror of our own for both tasks, and an empty cache."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(data.FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = idx_files()
    digests = {file: sha256(content) for file, content in files.items()}
    with mirror(files) as only:
        for name in list(data.SOURCES):
            monkeypatch.setitem(data.SOURCES, name, Source((only.url,), digests))
        yield only


def test_idx_scales_and_flattens(folder):
    read = data.idx(folder, "mnist")
    assert len(read.train) == 5
    assert len(read.test) == 3
    assert read.train.inputs.dtype == torch.float32
    torch.testing.assert_close(read.train.inputs[1], torch.tensor([6, 7, 8, 9, 10, 11]) / 255)
    assert read.train.inputs[-1, -1] == 1
    assert read.test.labels.tolist() == [0, 1, 2]
    assert read.train[torch.tensor([3, 1])].labels.tolist() == [3, 1]


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_where_no_folder_is_named_what_is_missing_is_downloaded_once(served, tmp_path, name):
    assert data.load(name).test.labels.tolist() == [0, 1, 2]
    files = sorted(idx_files())
    assert sorted(served.requests) == files
    assert sorted(path.name for path in (tmp_path / "cache" / "gdtuo" / name).iterdir()) == files
    data.load(name)
    assert len(served.requests) == 4
    (tmp_path / "cache" / "gdtuo" / name / files[2]).unlink()
    torch.testing.assert_close(data.load(name).train.inputs[1], torch.tensor([6, 7, 8, 9, 10, 11]) / 255)
    assert served.requests[4:] == [files[2]]


def test_an_empty_variable_names_no_folder(served, monkeypatch):
    monkeypatch.setenv(data.FOLDER_VARIABLE, "")
    assert len(data.load("mnist").train) == 5
    assert len(served.requests) == 4


def test_folder_comes_from_argument_then_environment(served, folder, tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(folder))
    assert len(data.load("mnist").train) == 5
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        data.load("mnist", tmp_path / "elsewhere")
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    assert len(data.load("mnist", folder).train) == 5
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        data.load("mnist")
    assert served.requests == []


@pytest.mark.parametrize("named", ["argument", "environment"])
def test_a_named_folder_is_not_written_to_and_not_passed_over(served, folder, tmp_path, monkeypatch, named):
    others = written(tmp_path / "cache" / "gdtuo")  # where the file would be found
    (folder / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    before = sorted(folder.rglob("*"))
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(folder if named == "environment" else others))
    remedies = r"data/mnist/t10k-labels-idx1-ubyte.gz.*mnist/t10k-labels-.*--data DIR or GDTUO_DATA=DIR, or name none"
    with pytest.raises(FileNotFoundError, match=remedies):
        data.load("mnist", folder if named == "argument" else None)
    assert sorted(folder.rglob("*")) == before
    assert served.requests == []


def test_a_download_that_fails_says_what_to_do(served, tmp_path):
    served.answers = {}
    with pytest.raises(OSError, match=r"(?s)give --data DIR, where DIR holds fashion/train-images-idx3.*HTTP Error 404"):
        data.load("fashion")
    assert not (tmp_path / "cache").exists()


def test_images_and_labels_of_different_number(folder):
    (folder / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(idx_file(np.zeros(4, np.uint8)))
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
    with pytest.raises(ImportError, match=r"pip install 'gdtuo\[lab\]'"):
        data.digits()


#: As torchvision publishes them, in torchvision/datasets/mnist.py.
MD5 = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    "fashion": {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
}


def test_every_public_file_has_a_checksum_and_every_task_two_mirrors():
    assert {name: set(source.files) for name, source in data.SOURCES.items()} == {name: set(MD5[name]) for name in MD5}
    digests = [digest for source in data.SOURCES.values() for digest in source.files.values()]
    assert len(set(digests)) == 8
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
    for source in data.SOURCES.values():
        assert len(source.mirrors) == 2
        assert all(url.startswith("http") and url.endswith("/") for url in source.mirrors)


FOLDER = os.environ.get(data.FOLDER_VARIABLE)

if FOLDER:  # .ci/run sets it where there are data; without, there is nothing to compare with

    @pytest.mark.parametrize("name", ["mnist", "fashion"])
    def test_the_real_files(name):
        read = data.load(name)
        assert read.train.inputs.shape == (60000, 784)
        assert read.test.inputs.shape == (10000, 784)
        assert torch.bincount(read.test.labels).sum() == 10000
        assert read.train.labels.unique().tolist() == list(range(10))

    @pytest.mark.parametrize("name", ["mnist", "fashion"])
    def test_the_checksums_are_those_of_the_files_that_torchvision_downloads(name):
        for file, digest in data.SOURCES[name].files.items():
            content = (Path(FOLDER) / name / file).read_bytes()
            assert hashlib.md5(content).hexdigest() == MD5[name][file]
            assert sha256(content) == digest
