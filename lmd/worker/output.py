"""A worker's standard output and error: lines for the log, the last of them kept to explain a death."""

import asyncio
from collections import deque
from collections.abc import Callable

KEPT_LINES = 40
MAX_LINE = 4096
"""Bytes; what is longer is cut into several lines."""


class LineReader(asyncio.Protocol):
    """Reads a pipe and gives every line to ``on_line``. ``closed`` is done at its end."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_line = on_line
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line(line)
        while len(self._rest) > MAX_LINE:
            self._line(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._line(self._rest)
        self._rest = b""
        if not self.closed.done():
            self.closed.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _line(self, line: bytes) -> None:
        for start in range(0, len(line), MAX_LINE):
            text = line[start : start + MAX_LINE].decode("utf-8", "replace").rstrip()
            if text:
                self.tail.append(text)
                self._on_line(text)
