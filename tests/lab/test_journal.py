"""Rows come back to the bit, whatever happened to the process that wrote them."""

import math
import random
import resource

import pytest

from gdtuo.lab.journal import Journal, alone, read, replace


def rows(seed, n):
    draw = random.Random(seed)
    errors = [draw.uniform(-1, 1) * 10 ** draw.randint(-300, 300) for _ in range(n)]
    return [{"tower": "adam/sgd(lr=0.1, learn=('lr',))", "seed": k, "error": error} for k, error in enumerate(errors)]


COLUMNS = ["tower", "seed", "error"]


def test_numbers_come_back_to_the_bit(tmp_path):
    written = rows(0, 200)
    journal = Journal(tmp_path / "deep" / "a.csv", COLUMNS)
    for row in written:
        journal.append([row])
    assert Journal(journal.path, COLUMNS).rows == written == read(journal.path) == journal.rows


def test_what_is_not_finite_comes_back(tmp_path):
    Journal(tmp_path / "a.csv", ["x"]).append([{"x": math.inf}, {"x": -math.inf}, {"x": math.nan}])
    one, two, three = (row["x"] for row in read(tmp_path / "a.csv"))
    assert (one, two) == (math.inf, -math.inf)
    assert math.isnan(three)


def test_cut_anywhere_the_whole_lines_are_kept_and_writing_goes_on(tmp_path):
    path, written = tmp_path / "a.csv", rows(1, 4)
    Journal(path, COLUMNS).append(written)
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        journal = Journal(path, COLUMNS)
        whole = max(sum(end <= cut for end in ends) - 1, 0)  # without the header
        assert journal.rows == written[:whole]
        journal.append(written[whole:])
        assert path.read_bytes() == content


def test_rows_that_are_not_kept_leave_the_file(tmp_path):
    journal = Journal(tmp_path / "a.csv", COLUMNS)
    journal.append(rows(2, 6))
    journal.keep(lambda row: row["seed"] % 2 == 0)
    assert [row["seed"] for row in journal.rows] == [row["seed"] for row in read(journal.path)] == [0, 2, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_another_experiment_s_file_is_refused_and_left_alone(tmp_path):
    journal = Journal(tmp_path / "a.csv", COLUMNS)
    journal.append(rows(3, 2))
    before = journal.path.read_bytes()
    with pytest.raises(ValueError, match="Name another file"):
        Journal(journal.path, ["seed", "error"])
    assert journal.path.read_bytes() == before


@pytest.mark.parametrize("content", ["a list of mine", "seed,error\n1,2\n3", "tower,seed,error\nadam,1\nadam,2,0"])
def test_a_file_that_is_not_its_own_is_left_alone(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"Name another file|Delete it"):
        Journal(path, COLUMNS)
    assert path.read_text() == content


def test_empty_lines_and_other_line_ends_do_not_matter(tmp_path):
    journal = Journal(tmp_path / "a.csv", COLUMNS)
    journal.append(rows(4, 3))
    text = journal.path.read_text()
    journal.path.write_bytes(text.replace("\n", "\r\n").encode() + b"\r\n\n")
    assert read(journal.path) == Journal(journal.path, COLUMNS).rows == rows(4, 3)


def test_of_a_disk_that_gets_full_the_rows_are_kept(tmp_path):
    journal = Journal(tmp_path / "a.csv", COLUMNS)
    journal.append(rows(5, 3))
    kept = journal.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="Make room"):
            journal.append(rows(6, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal.path.read_bytes() == kept
    assert journal.rows == rows(5, 3)


def test_two_do_not_write_at_once(tmp_path):
    path = tmp_path / "deep" / "a.csv"
    with alone(path):
        with pytest.raises(BlockingIOError, match="Wait until it ends"), alone(path):
            pass
        Journal(path, COLUMNS).append(rows(7, 2))
    with alone(path):
        assert Journal(path, COLUMNS).rows == rows(7, 2)


def test_a_file_is_replaced_whole(tmp_path):
    replace(tmp_path / "a.txt", "one\n")
    replace(tmp_path / "a.txt", "two\n")
    assert (tmp_path / "a.txt").read_text() == "two\n"
