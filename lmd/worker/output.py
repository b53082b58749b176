"""A worker's standard output and error: lines for the log, the last of them kept to explain a death.

Lines may begin with a level as sd-daemon(3) has it (``<3>`` error … ``<7>`` debug); others are taken for information.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable

KEPT_LINES = 40
MAX_LINE = 4096
"""Bytes; what is longer is cut into several lines."""


_LEVEL = re.compile(r"<([0-7])>\s*")
_LEVELS = (*[logging.CRITICAL] * 3, logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)


class LineReader(asyncio.Protocol):
    """Reads a pipe and gives every line to ``on_line(level, text)``. ``closed`` is done at its end."""

    def __init__(self, on_line: Callable[[int, str], None]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tail: deque[str] = deque(maxlen=KEPT_LINES)
        """The last lines, without those for debugging, which would push out what explains a death."""
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
            level = logging.INFO
            if marked := _LEVEL.match(text):
                level, text = _LEVELS[int(marked[1])], text[marked.end() :]
            if not text:
                continue
            if level > logging.DEBUG:
                self.tail.append(text)
            self._on_line(level, text)
