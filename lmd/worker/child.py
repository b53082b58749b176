"""A child process: started beside the daemon, ended for certain, and its end noticed. Knows nothing of what it says."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from typing import IO

from lmd.errors import LoadFailed

_TERM_PATIENCE = 1.0
"""Seconds that a process may take to end after SIGTERM."""


class Child:
    """Event loop only. Make it in the main thread: it asks to die with its parent (``PR_SET_PDEATHSIG``), and for the
    kernel the parent is the thread that spawned it."""

    def __init__(self, command: Sequence[str], connection: socket.socket) -> None:
        """``connection`` is its end of a socket pair, whose number it gets as its last argument. Raises LoadFailed."""
        try:
            self._process = subprocess.Popen(
                [*command, str(connection.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(connection.fileno(),),
                # Not in the terminal's foreground group: Ctrl-C is for the daemon, which drains first.
                start_new_session=True,
                env=_environment(),
            )
        except OSError as exc:
            raise LoadFailed(f"A worker process cannot be started: {exc}.") from exc
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        """Done once it has ended and is reaped."""
        self._watch_exit()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, or minus the number of the signal that ended it; None while it runs."""
        return self._process.returncode

    @property
    def output(self) -> IO[bytes]:
        """What it writes to standard output and standard error."""
        assert self._process.stdout is not None
        return self._process.stdout

    def signal(self, number: signal.Signals) -> None:
        """To it and whatever it has started. Nothing happens once it has ended."""
        # Until poll() has reaped it the pid cannot belong to another process.
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                self._process.send_signal(number)

    async def insist_on_exit(self, patience: float) -> None:
        """Give it ``patience`` seconds to end by itself, then force it. Returns once it is reaped."""
        for seconds, number in ((patience, signal.SIGTERM), (_TERM_PATIENCE, signal.SIGKILL)):
            await asyncio.wait((self.exited,), timeout=seconds)
            if self.exited.done():
                return
            self.signal(number)
        await self.exited

    def _watch_exit(self) -> None:
        pidfd = os.pidfd_open(self._process.pid)

        def exited() -> None:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            self._process.poll()
            if not self.exited.done():
                self.exited.set_result(None)

        self._loop.add_reader(pidfd, exited)


def _environment() -> dict[str, str]:
    """Ours, without what is meant for the daemon alone (systemd's sockets, notifications and watchdog)."""
    ours = {k: v for k, v in os.environ.items() if k not in _FOR_THE_DAEMON}
    return ours | {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        # ggml's backtrace starts gdb where there is one: a second in which clients wait, and a hundred lines that push
        # what failed out of the log's end. Python's own shows where we were.
        "GGML_NO_BACKTRACE": "1",
        # numpy's threads wait busily from its import on, and we give them nothing to do.
        "OPENBLAS_NUM_THREADS": "1",
    }


_FOR_THE_DAEMON = frozenset(
    ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM")
)
