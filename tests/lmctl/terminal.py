"""A program on a terminal of its own, as a person sits before it."""

import asyncio
import fcntl
import os
import re
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_STYLES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    def __init__(self, process: asyncio.subprocess.Process, keyboard: int, screen: asyncio.StreamReader) -> None:
        self.process = process
        self.raw = ""
        """All that was written, escape sequences included."""
        self._keyboard = keyboard
        self._screen = screen
        self._read = 0

    @property
    def text(self) -> str:
        return _STYLES.sub("", self.raw)

    async def until(self, shown: str) -> str:
        """Wait until ``shown`` appears (without styles) after what was last waited for. Returns what came till then."""
        while (at := self.text.find(shown, self._read)) < 0:
            if not await self._more():
                raise AssertionError(f"ended without showing {shown!r}:\n{self.text}")
        start, self._read = self._read, at + len(shown)
        return self.text[start : self._read]

    async def end(self) -> int:
        """Wait for the program's end; its exit code."""
        while await self._more():
            pass
        return await self.process.wait()

    def type(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    async def _more(self) -> bool:
        try:
            piece = await self._screen.read(65536)
        except OSError:  # EIO: the last program has closed the terminal
            return False
        self.raw += piece.decode(errors="replace")
        return bool(piece)


@asynccontextmanager
async def terminal(*command: str | Path, env: dict[str, str], columns: int = 80) -> AsyncIterator[Terminal]:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, preexec_fn=own_terminal
    )
    os.close(theirs)
    screen = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(screen), os.fdopen(os.dup(ours), "rb", buffering=0)
    )
    try:
        yield Terminal(process, ours, screen)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        transport.close()
        os.close(ours)
