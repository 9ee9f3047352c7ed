"""A file server of our own that can misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

Answer = bytes | Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """What it serves (a file's content, or what to do when it is asked for), and which paths it was asked for."""

    def __init__(self, url: str, answers: Mapping[str, Answer]) -> None:
        self.url = url
        self.answers = answers
        self.requests: list[str] = []


@contextmanager
def mirror(answers: Mapping[str, Answer]) -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            served.requests.append(name)
            answer = served.answers.get(name)
            if answer is None:
                self.send_error(404)
            elif callable(answer):
                answer(self)
            else:
                send(self, answer)

        def log_message(self, *_: object) -> None:
            """Nothing: the tests read stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Mirror(f"http://127.0.0.1:{server.server_port}/", answers)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, content: bytes, of: int | None = None) -> None:
    """Content, as the beginning of a file of `of` bytes."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(of or len(content)))
    handler.end_headers()
    handler.wfile.write(content)
