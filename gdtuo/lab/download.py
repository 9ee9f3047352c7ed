"""Public files from the first mirror that serves them, each checked against its published content."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

__all__ = ["Source", "cache", "fetch", "sha256"]

#: Bytes read at once: few enough for a bar that moves.
CHUNK = 1 << 16


@dataclass(frozen=True)
class Source:
    """Public files, and where they are.

    Args:
        mirrors: URLs of folders, each with its last slash, in the order in which they are asked.
        files: of each file's name the SHA-256 of its content, in hexadecimal digits.
    """

    mirrors: tuple[str, ...]
    files: Mapping[str, str]


def cache() -> Path:
    """The folder of what was downloaded: $XDG_CACHE_HOME/gdtuo, and ~/.cache/gdtuo where that variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gdtuo"


def sha256(content: bytes | bytearray) -> str:
    """Its SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def fetch(source: Source, folder: str | Path, timeout: float = 30.0) -> None:
    """Make a folder hold the files of a source: what it has and is right stays, the rest is downloaded.

    A file appears in the folder only when it is whole and right, however the download ends, and whatever other processes
    fetch at the same time. Each attempt is a line on stderr, with a bar where that is a terminal.

    Args:
        source: the files, and the mirrors to ask. After a mirror has served a file, it is asked first for the next one.
        folder: where they go; made if it is missing.
        timeout: seconds that a mirror may be silent before the next one is asked.

    Raises:
        OSError: if no mirror serves a file (says of each why), or if the folder cannot be written to.
        ImportError: without tqdm, which draws the bar.

    Example:
        >>> import tempfile
        >>> there, here = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
        >>> _ = (there / "a.txt").write_bytes(b"alpha")
        >>> fetch(Source((there.as_uri() + "/",), {"a.txt": sha256(b"alpha")}), here)
        >>> (here / "a.txt").read_bytes()
        b'alpha'
    """
    folder = Path(folder)
    mirrors = source.mirrors
    for name, digest in source.files.items():
        path = folder / name
        if path.is_file() and sha256(path.read_bytes()) == digest:
            continue
        remedy = f"Fetch it by hand and give --data DIR, where DIR holds {folder.name}/{name}."
        served, content = _first(mirrors, name, digest, timeout, remedy)
        mirrors = (served, *(mirror for mirror in mirrors if mirror != served))
        try:
            _put(path, content)
        except OSError as error:
            raise OSError(f"{path} cannot be written ({error}). Set XDG_CACHE_HOME=DIR. {remedy}") from error


def _first(mirrors: Iterable[str], name: str, digest: str, timeout: float, remedy: str) -> tuple[str, bytearray]:
    """The first mirror that serves a file, and the file."""
    failures = []
    for mirror in mirrors:
        try:
            return mirror, _download(mirror + name, digest, timeout)
        except (OSError, HTTPException) as error:
            failures.append(f"\n  {mirror}{name}: {error}")
    raise OSError(f"No mirror serves {name}. {remedy}{''.join(failures)}")


def _download(url: str, digest: str, timeout: float) -> bytearray:
    """What stands at a URL. It is kept in memory until it is known to be right: these files have some 30 MB at most."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("The bar of a download comes with tqdm, which is missing: pip install 'gdtuo[lab]'.") from error
    print(f"Fetching {url}", file=sys.stderr, flush=True)
    content = bytearray()
    with urlopen(url, timeout=timeout) as response:
        size = int(response.headers["Content-Length"] or 0)
        with tqdm(total=size or None, unit="B", unit_scale=True, leave=False, disable=None) as bar:
            while chunk := response.read(CHUNK):
                content += chunk
                bar.update(len(chunk))
    if len(content) < size:
        raise OSError(f"the transfer ended after {len(content)} of {size} bytes")
    if (found := sha256(content)) != digest:
        raise OSError(f"wrong checksum: SHA-256 is {found}, not {digest}")
    return content


def _put(path: Path, content: bytearray) -> None:
    """Write a file that nobody sees in part: under a name that nobody else has, then moved into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
