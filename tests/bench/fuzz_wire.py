"""What is fuzzed from outside: a real daemon with a model, over TCP and over its control socket."""

import http.client
import http.server
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from hypothesis import strategies as st

from tests.bench.fuzz_inputs import CLIENT_ROUTES, CONTROL_ROUTES, Route, raw_http, request_of
from tests.bench.fuzz_targets import TINY, Surprise, Target
from tests.bench.supervised import Supervised

ANSWER_SECONDS = 90.0
"""Within which every request that can be read must be answered."""
RAW_SECONDS = 5.0
"""How long bytes that may be no request are waited for."""
_UNEXPECTED = re.compile(r'"code":\s*"(internal_error|worker_died)"|Something went wrong inside lmd')

SETTINGS = """\
context_length = 512
parallel = 2
[models]
ttl = "30s"
[log]
level = "warning"
"""


class _EmptyHub(http.server.BaseHTTPRequestHandler):
    """Knows no repository. A hub that cannot be reached would be asked again, seconds later each time."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[str]:
    """An address where an empty hub answers, so that nothing leaves this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _EmptyHub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fuzzed_daemon(folder: Path, endpoint: str) -> Supervised:
    """``endpoint``: of the hub that it may ask."""
    daemon = Supervised(folder, SETTINGS, {"HF_ENDPOINT": endpoint, "HF_TOKEN": ""})
    shutil.copy(TINY, daemon.folder / "models")
    (daemon.folder / "presets.d" / "counter.toml").write_text('model = "tiny-chat"\n[sampling]\ntemperature = 0\n')
    return daemon


class Wire:
    """One way into the daemon. Its checks look at the answer, and at what the daemon wrote into its log meanwhile."""

    def __init__(self, daemon: Supervised, address: str | tuple[str, int], routes: tuple[Route, ...]) -> None:
        self._daemon = daemon
        self._address = address
        self._log = daemon.logs[-1]
        self._log_read: int | None = None
        requests, raws = request_of(routes), raw_http(routes)
        self.inputs = st.one_of(requests, requests, raws)

    def check(self, case: tuple[str, str, bytes] | bytes) -> None:
        if self._log_read is None:
            self._log_read = self._log.stat().st_size
        if isinstance(case, bytes):
            self._throw(case)
        else:
            self._ask(*case)
        self._no_traceback()
        if not self._daemon.is_up:
            raise Surprise("the daemon has ended")

    def _connect(self, timeout: float) -> socket.socket:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        sock = socket.socket(family)
        sock.settimeout(timeout)
        sock.connect(self._address)
        return sock

    def _ask(self, method: str, path: str, body: bytes) -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        with self._connect(ANSWER_SECONDS) as sock:
            with suppress(ConnectionError):  # refused by its head; the answer is there
                sock.sendall(head.encode() + body)
            response = http.client.HTTPResponse(sock, method=method)
            response.begin()
            text = response.read().decode()
        judge(method, response.status, response.headers.get_content_type(), text)

    def _throw(self, data: bytes) -> None:
        came = b""
        with self._connect(RAW_SECONDS) as sock, suppress(ConnectionError, TimeoutError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(1 << 16):
                came += piece
        # aiohttp takes a request line without a version for HTTP/0.9, and says so in its answer.
        if came and not came.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ", b"HTTP/0.9 ")):
            raise Surprise(f"what came back is no HTTP: {came[:200]!r}")
        if came[9:12] == b"500" or _UNEXPECTED.search(came.decode(errors="replace")):
            raise Surprise(came[-500:].decode(errors="replace"))

    def _no_traceback(self) -> None:
        assert self._log_read is not None
        if self._log.stat().st_size > self._log_read:
            with self._log.open("rb") as file:
                file.seek(self._log_read)
                told = file.read()
            self._log_read += len(told)
            if b"Traceback" in told:
                raise Surprise(told.decode(errors="replace")[-3000:])


def judge(method: str, status: int, kind: str, text: str) -> None:
    """Surprise where an answer is not one that lmd may give to anything whatever that it was sent."""
    if _UNEXPECTED.search(text):
        raise Surprise(f"{status}: {text[-1000:]}")
    if status >= 400 and method != "HEAD":
        try:
            said: Any = json.loads(text)
        except ValueError:
            raise Surprise(f"{status} without JSON: {text[:300]!r}") from None
        error = said.get("error", said) if isinstance(said, dict) else None
        if not isinstance(error, dict) or not error.get("message"):
            raise Surprise(f"{status} without a message: {text[:300]!r}")
    if status == 500 and '"load_failed"' not in text:
        raise Surprise(f"500: {text[:1000]}")
    if status == 200 and kind == "application/json" and method != "HEAD":
        json.loads(text)


def wire_targets(daemon: Supervised) -> list[Target]:
    """``daemon``: one that runs."""
    tcp = Wire(daemon, ("127.0.0.1", daemon.port), CLIENT_ROUTES)
    unix = Wire(daemon, str(daemon.socket), CONTROL_ROUTES)
    return [
        Target("http", "HTTP, a running daemon with a model", tcp.inputs, tcp.check),
        Target("control", "the control socket of the same daemon", unix.inputs, unix.check),
    ]


def cpu_seconds(pid: int) -> float:
    """Of the process, its children, and those of its children that it has reaped."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times()[:2])
    return total
