"""Where log records go: the journal with fields, a terminal in colour, plain lines, or JSON.

Attach structured fields with ``extra=fields(MODEL=…, INSTANCE=…)``; names are upper-case, as the
journal wants them. The id of the HTTP request being served is attached to every record by itself.
"""

import contextvars
import fcntl
import json
import logging
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

Format = Literal["auto", "journal", "console", "plain", "json"]

JOURNAL_SOCKET = "/run/systemd/journal/socket"

_request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


def fields(**named: Any) -> dict[str, Any]:
    """For ``extra=``: structured fields of one record. None values are left out."""
    return {"fields": {name: value for name, value in named.items() if value is not None}}


def request_id() -> str | None:
    """The id of the HTTP request that the running task serves, or None."""
    return _request_id.get()


@contextmanager
def serving(identifier: str) -> Iterator[None]:
    """Records logged inside (by this task and those that it starts) carry ``REQUEST_ID``."""
    token = _request_id.set(identifier)
    try:
        yield
    finally:
        _request_id.reset(token)


def setup(level: str = "info", format: Format = "auto", stream: TextIO | None = None) -> None:
    """Route the root logger to ``stream`` (standard error) or the journal. May be called again, on reload."""
    stream = stream or sys.stderr
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "of_lmd", False):
            root.removeHandler(old)
            old.close()
    handler = _handler(format, stream)
    handler.of_lmd = True  # type: ignore[attr-defined]
    handler.addFilter(_attach_request_id)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # The libraries' chatter about themselves is nobody's.
    for library in ("asyncio", "watchfiles"):
        logging.getLogger(library).setLevel(max(logging.WARNING, root.level))


def _handler(format: Format, stream: TextIO) -> logging.Handler:
    if format == "auto":
        on_terminal: Format = "console" if stream.isatty() else "plain"
        format = "journal" if stderr_is_journal(stream) else on_terminal
    if format == "journal":
        try:
            return JournalHandler(JOURNAL_SOCKET)
        except OSError:
            # Journal without its native socket (a container's log driver, say): level prefixes still work.
            handler = logging.StreamHandler(stream)
            handler.setFormatter(PrefixFormatter())
            return handler
    handler = logging.StreamHandler(stream)
    if format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(ConsoleFormatter(colour=format == "console" and "NO_COLOR" not in os.environ))
    return handler


def stderr_is_journal(stream: TextIO) -> bool:
    """Whether systemd connected ``stream`` to the journal (``JOURNAL_STREAM=device:inode``, sd-daemon(3))."""
    said = os.environ.get("JOURNAL_STREAM", "")
    device, _, inode = said.partition(":")
    try:
        status = os.fstat(stream.fileno())
        return (int(device), int(inode)) == (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        return False


def _attach_request_id(record: logging.LogRecord) -> bool:
    identifier = _request_id.get()
    if identifier is not None:
        record.request_id = identifier
    return True


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The record's structured fields, the id of the request that it belongs to among them."""
    own: Mapping[str, Any] = getattr(record, "fields", {})
    identifier = getattr(record, "request_id", None)
    return {**({"REQUEST_ID": identifier} if identifier else {}), **own}


def message_of(record: logging.LogRecord) -> str:
    """What the record says, and the traceback of what was raised."""
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + logging.Formatter().formatException(record.exc_info)
    return message


class _Tap(logging.Handler):
    def __init__(self, tell: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._tell = tell
        self.addFilter(_attach_request_id)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._tell(record)
        except Exception:
            self.handleError(record)


@contextmanager
def tapped(tell: Callable[[logging.LogRecord], None]) -> Iterator[None]:
    """Every record that is logged inside goes to ``tell`` as well, in the thread that logs it."""
    tap = _Tap(tell)
    logging.getLogger().addHandler(tap)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(tap)


def _priority(level: int) -> int:
    """A syslog priority for a logging level."""
    for bound, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= bound:
            return priority
    return 7


_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class ConsoleFormatter(logging.Formatter):
    """``12:00:00 INFO  pool  message  REQUEST_ID=…``, the level in colour where asked."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname:<7}"
        tail = "".join(f" {name.lower()}={_plain(value)}" for name, value in fields_of(record).items())
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
            clock = f"\x1b[2m{clock}\x1b[0m"
            tail = tail and f"\x1b[2m{tail}\x1b[0m"
        text = f"{clock} {level} {record.name.removeprefix('lmd.')}: {record.getMessage()}{tail}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


_QUOTED = re.compile(r'[\s"]')


def _plain(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or _QUOTED.search(text) else text


class PrefixFormatter(logging.Formatter):
    """``<6>message``: the level prefixes of sd-daemon(3), on every line."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"{record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        prefix = f"<{_priority(record.levelno)}>"
        return "\n".join(prefix + line for line in text.splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, message, and the fields in lower case."""

    def format(self, record: logging.LogRecord) -> str:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, Any] = {
            "time": f"{whole}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        said.update((name.lower(), value) for name, value in fields_of(record).items())
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False, default=str)


class JournalHandler(logging.Handler):
    """Speaks the journal's native protocol: a datagram of fields, or a sealed memfd where that is too large.

    Format: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/. OSError where there is no journal.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(journal_entry(record))
        except Exception:
            self.handleError(record)

    def _send(self, entry: bytes) -> None:
        try:
            self._socket.send(entry)
        except ConnectionError:  # journald was restarted: its socket is another one
            self._socket.connect(self._path)
            self._socket.send(entry)
        except OSError:  # EMSGSIZE: larger than a datagram may be
            memory = os.memfd_create("lmd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                with Path(f"/proc/self/fd/{memory}").open("wb") as file:
                    file.write(entry)
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
                socket.send_fds(self._socket, [b""], [memory])
            finally:
                os.close(memory)

    def close(self) -> None:
        self._socket.close()
        super().close()


def journal_entry(record: logging.LogRecord) -> bytes:
    """``record`` as the journal's native protocol has it: ``NAME=value`` lines, or sized where a value has newlines."""
    named = {
        "MESSAGE": message_of(record),
        "PRIORITY": _priority(record.levelno),
        "SYSLOG_IDENTIFIER": "lmd",
        "LOGGER": record.name,
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
        **fields_of(record),
    }
    entry = bytearray()
    for name, value in named.items():
        data = str(value).encode("utf-8", "replace")
        if b"\n" in data:
            entry += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            entry += name.encode() + b"=" + data + b"\n"
    return bytes(entry)
