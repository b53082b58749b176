"""What systemd and the daemon tell each other: sd_notify states, the watchdog, and passed sockets.

Everything here does nothing where systemd did not start the process, so the daemon calls it always.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Mapping

import sdnotify

_FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


_LONGEST_SECONDS = 10 * 365 * 86400.0
"""Stands for ever: the manager adds it to the time of day in 64 bits of microseconds."""


_KEPT = 16
"""States that wait for a manager that reads nothing; the oldest are forgotten for more."""


class Notifier:
    """Sends states to the service manager (sd_notify(3)). Never raises, never blocks: what a busy manager has no room
    for goes before the next state, or with `retry`."""

    def __init__(self) -> None:
        self._notifier = None
        self._unsent: deque[str] = deque(maxlen=_KEPT)
        if os.environ.get("NOTIFY_SOCKET"):
            with contextlib.suppress(OSError):  # nobody is there
                # "debug" is its word for not swallowing errors: only so do we see that it would have blocked.
                self._notifier = sdnotify.SystemdNotifier(debug=True)
                self._notifier.socket.setblocking(False)

    def ready(self, status: str) -> None:
        self._say("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def status(self, text: str) -> None:
        self._say(f"STATUS={text}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The time is what ``Type=notify-reload`` wants with it."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._say("STOPPING=1", f"STATUS={status}")

    def watchdog(self) -> None:
        self._say("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Start or stop takes longer: count the manager's timeout from now, for ``seconds``, which may be ``inf``."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(min(seconds, _LONGEST_SECONDS) * 1e6)}")

    def _say(self, *lines: str) -> None:
        # A status is one line of the datagram: a newline in it would be read as another assignment.
        state = "\n".join(line.replace("\n", " ") for line in lines)
        # sdnotify writes Latin-1: in these characters the bytes are UTF-8's.
        self._unsent.append(state.encode(errors="replace").decode("latin-1"))
        self.retry()

    def retry(self) -> None:
        """Send what the manager has had no room for."""
        while self._unsent:
            try:
                if self._notifier is not None:
                    self._notifier.notify(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                pass  # nobody is there, or it takes no such datagram: as it will another time
            self._unsent.popleft()


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between the signs of life to send (half of what the manager allows), or None where it wants none."""
    try:
        allowed = int(environ.get("WATCHDOG_USEC", "0"))
        meant_for = int(environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    if allowed <= 0 or meant_for != os.getpid():
        return None
    return allowed / 2e6


def passed_sockets() -> dict[str, list[socket.socket]]:
    """Listening sockets that systemd passed (sd_listen_fds(3)), by their ``FileDescriptorName=``.

    Sockets without a name of ours are sorted by what they are: ``control`` for Unix, ``http`` for TCP.
    The variables are removed, so that no child takes the sockets for its own. May be called once.
    """
    environ = os.environ
    try:
        count = int(environ.get("LISTEN_FDS", "0"))
        meant_for = int(environ.get("LISTEN_PID", "0"))
    except ValueError:
        count, meant_for = 0, 0
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        environ.pop(variable, None)
    if meant_for != os.getpid():
        return {}
    passed: dict[str, list[socket.socket]] = {}
    for index in range(count):
        fd = _FIRST_FD + index
        os.set_inheritable(fd, False)
        one = socket.socket(fileno=fd)
        one.setblocking(False)
        name = names[index] if index < len(names) else ""
        if name not in {"http", "control"}:
            name = "control" if one.family == socket.AF_UNIX else "http"
        passed.setdefault(name, []).append(one)
    return passed
