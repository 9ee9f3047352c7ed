"""gdtuo.lab.download, against a file server on this machine: what arrives is right and whole, or is not there."""

import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from idx_files import idx_file
from served import mirror, send

from gdtuo.lab.download import Source, cache, fetch, sha256

NAME = "a-idx3-ubyte.gz"
GOOD = idx_file(np.random.default_rng(0).integers(0, 256, (50, 40, 100), dtype=np.uint8))  # 200 kB: several reads
BAD = GOOD[:-1] + bytes([GOOD[-1] ^ 1])  # one bit
HALF = partial(send, content=GOOD[: len(GOOD) // 2], of=len(GOOD))
DIGESTS = {NAME: sha256(GOOD)}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve():
    """Mirrors, by what each serves."""
    with ExitStack() as stack:
        yield lambda *answers: [stack.enter_context(mirror(each)) for each in answers]


def source(*mirrors, files=DIGESTS):
    return Source(tuple(each.url for each in mirrors), files)


def contents(folder):
    """Everything in a folder, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_sha256_of_abc():
    """The example of FIPS 180-2, appendix B.1."""
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_good_file_arrives_and_nothing_else(tmp_path, serve, capsys):
    (only,) = serve({NAME: GOOD})
    fetch(source(only), tmp_path / "new" / "folder")
    assert contents(tmp_path / "new" / "folder") == {NAME: GOOD}
    assert capsys.readouterr().err == f"Fetching {only.url}{NAME}\n"


def test_a_terminal_shows_a_bar(tmp_path, serve, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    (only,) = serve({NAME: GOOD})
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    fetch(source(only), tmp_path)
    assert "/200k [" in sys.stderr.getvalue()


def wrong(handler):
    send(handler, BAD)


def slow(handler):
    given_up, _, _ = select.select([handler.connection], [], [], 5)
    if not given_up:
        send(handler, GOOD)


def half_of_a_stream(handler):
    """Without a length; its last chunk says that it is a hundred bytes and has ten."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"64\r\n" + GOOD[:10])


def hung_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def busy(handler):
    handler.send_error(503, "Slow Down")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "HTTP Error 404"),
        (busy, "HTTP Error 503: Slow Down"),
        (wrong, f"wrong checksum: SHA-256 is {sha256(BAD)}, not {sha256(GOOD)}"),
        (HALF, f"the transfer ended after {len(GOOD) // 2} of {len(GOOD)} bytes"),
        (half_of_a_stream, "IncompleteRead"),
        (slow, "timed out"),
        (hung_up, "Remote end closed connection"),
    ],
    ids=["404", "503", "corrupt", "truncated", "half a stream", "slow", "hung up"],
)
def test_a_mirror_that_fails_is_followed_by_the_next(tmp_path, serve, answer, reason):
    first, second = serve({NAME: answer}, {NAME: GOOD})
    fetch(source(first, second), tmp_path / "good", timeout=0.5)
    assert contents(tmp_path / "good") == {NAME: GOOD}
    assert first.requests == second.requests == [NAME]
    with pytest.raises(OSError, match=rf"No mirror serves {NAME}\. Fetch it by hand and give --data DIR") as caught:
        fetch(source(first), tmp_path / "bad", timeout=0.5)
    assert f"{first.url}{NAME}: " in str(caught.value)
    assert reason in str(caught.value)
    assert contents(tmp_path / "bad") == {}


def test_when_all_mirrors_fail_each_is_listed_with_its_reason(tmp_path, serve):
    missing, corrupt = serve({}, {NAME: BAD})
    refused = f"http://127.0.0.1:{closed_port()}/"
    mirrors = Source((missing.url, corrupt.url, refused), DIGESTS)
    with pytest.raises(OSError, match=rf"give --data DIR, where DIR holds mnist/{NAME}") as caught:
        fetch(mirrors, tmp_path / "mnist")
    _, *lines = str(caught.value).splitlines()
    for line, url, reason in zip(
        lines, mirrors.mirrors, ["HTTP Error 404: Not Found", "wrong checksum", "Connection refused"], strict=True
    ):
        assert line.startswith(f"  {url}{NAME}: ")
        assert reason in line
    assert not (tmp_path / "mnist").exists()


def test_a_good_file_is_not_fetched_again(tmp_path, serve, capsys):
    (only,) = serve({NAME: GOOD})
    fetch(source(only), tmp_path)
    fetch(source(only), tmp_path)
    assert only.requests == [NAME]
    assert capsys.readouterr().err.count("Fetching") == 1


@pytest.mark.parametrize("there", [BAD, GOOD[:1000], b""], ids=["one bit", "a part", "empty"])
def test_a_damaged_file_is_fetched_anew(tmp_path, serve, there):
    (only,) = serve({NAME: GOOD})
    (tmp_path / NAME).write_bytes(there)
    fetch(source(only), tmp_path)
    assert contents(tmp_path) == {NAME: GOOD}


def test_only_what_is_missing_is_fetched_and_from_the_mirror_that_has_served(tmp_path, serve):
    texts = {name: name.encode() * 10 for name in "abcd"}
    digests = {name: sha256(text) for name, text in texts.items()}
    first, second = serve({"d": texts["d"]}, {"b": texts["b"], "c": texts["c"]})
    (tmp_path / "a").write_bytes(texts["a"])
    fetch(source(first, second, files=digests), tmp_path)
    assert contents(tmp_path) == texts
    assert first.requests == ["b", "d"]
    assert second.requests == ["b", "c", "d"]


def test_two_at_once_do_not_hurt_each_other(tmp_path, serve, monkeypatch):
    """Both have written before either moves."""
    both = threading.Barrier(2)
    move = Path.replace
    failures = []

    def together(self, target):
        both.wait(timeout=10)
        return move(self, target)

    def one():
        try:
            fetch(source(only), tmp_path)
        except BaseException as error:
            failures.append(error)

    (only,) = serve({NAME: GOOD})
    monkeypatch.setattr(Path, "replace", together)
    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert only.requests == [NAME, NAME]
    assert contents(tmp_path) == {NAME: GOOD}


def test_a_killed_download_leaves_nothing_and_the_next_one_succeeds(tmp_path, serve):
    under_way, end = threading.Event(), threading.Event()

    def stall(handler):
        HALF(handler)
        under_way.set()
        end.wait(timeout=60)

    (only,) = serve({NAME: stall})
    script = f"from gdtuo.lab.download import *; fetch({source(only)!r}, {str(tmp_path / 'cache')!r}, timeout=60)"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        assert under_way.wait(timeout=60)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
        end.set()
    assert contents(tmp_path / "cache") == {}
    only.answers = {NAME: GOOD}
    fetch(source(only), tmp_path / "cache")
    assert contents(tmp_path / "cache") == {NAME: GOOD}


def test_a_file_is_whole_before_it_has_its_name(tmp_path, serve, monkeypatch):
    (only,) = serve({NAME: GOOD})
    moved = []

    def interrupted(self, target):
        moved.append((self.parent, self.read_bytes(), Path(target).exists()))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(source(only), tmp_path)
    assert moved == [(tmp_path, GOOD, False)]  # beside its target: a move within one file system
    assert contents(tmp_path) == {}


def test_a_place_that_cannot_be_written_is_named(tmp_path, serve):
    (only,) = serve({NAME: GOOD})
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"file/mnist/{NAME} cannot be written.*Set XDG_CACHE_HOME=DIR.*give --data DIR"):
        fetch(source(only), tmp_path / "file" / "mnist")


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache() == tmp_path / ".cache" / "gdtuo"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache() == tmp_path / ".cache" / "gdtuo"
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "elsewhere"))
    assert cache() == tmp_path / "elsewhere" / "gdtuo"


def test_without_tqdm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"pip install 'gdtuo\[lab\]'"):
        fetch(Source(("http://127.0.0.1/",), DIGESTS), tmp_path)
