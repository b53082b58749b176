import io
import json
import logging
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmd import log


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in list(root.handlers):
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)


def lines(format: log.Format, level: str = "info") -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    log.setup(level, format, stream)
    return stream, logging.getLogger("lmd.test")


def test_json_has_one_object_a_line_with_the_fields() -> None:
    stream, logger = lines("json")
    with log.serving("req_1"):
        logger.info("two\nlines", extra=log.fields(MODEL="tiny", PRESET=None))
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said["message"] == "two\nlines"
    assert (said["model"], said["request_id"], said["level"]) == ("tiny", "req_1", "info")
    assert "preset" not in said


def test_a_plain_line_has_no_colour() -> None:
    stream, logger = lines("plain")
    logger.warning("careful", extra=log.fields(MODEL="a b"))
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().rstrip().endswith('WARNING test: careful model="a b"')


def test_a_terminal_gets_colour_unless_it_asks_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream, logger = lines("console")
    logger.info("hello")
    assert "\x1b[32m" in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    stream, logger = lines("console")
    logger.info("hello")
    assert "\x1b" not in stream.getvalue()


def test_setting_up_again_replaces_and_does_not_double() -> None:
    first, _ = lines("plain")
    second, logger = lines("plain", "warning")
    logger.info("too low")
    logger.warning("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
    assert "too low" not in second.getvalue()


def test_outside_a_request_there_is_no_id() -> None:
    with log.serving("req_1"):
        assert log.request_id() == "req_1"
    assert log.request_id() is None


@pytest.fixture
def journal() -> Iterator[socket.socket]:
    # A socket's path must be short, which tmp_path is not always.
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{directory}/journal")
        server.settimeout(5)
        yield server


def fields_of(entry: bytes) -> dict[str, str]:
    """Reads the journal's native protocol."""
    found = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", entry)
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        found[name.decode()] = value.decode()
    return found


def test_the_journal_gets_fields(journal: socket.socket) -> None:
    logger = logging.getLogger("lmd.test.journal")
    logger.addHandler(log.JournalHandler(journal.getsockname()))
    logger.error("first\nsecond", extra=log.fields(MODEL="tiny=1", TOKENS=3))
    found = fields_of(journal.recv(65536))
    assert found["MESSAGE"] == "first\nsecond"
    assert found["PRIORITY"] == "3"
    assert (found["MODEL"], found["TOKENS"], found["LOGGER"]) == ("tiny=1", "3", "lmd.test.journal")
    assert found["SYSLOG_IDENTIFIER"] == "lmd"


def test_a_record_too_large_for_a_datagram_goes_as_a_file(journal: socket.socket) -> None:
    logger = logging.getLogger("lmd.test.memfd")
    logger.setLevel("INFO")
    logger.addHandler(log.JournalHandler(journal.getsockname()))
    logger.info("x" * 2_000_000)
    _, (fd,), _, _ = socket.recv_fds(journal, 65536, 1)
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        assert fields_of(file.read())["MESSAGE"] == "x" * 2_000_000


def test_the_journal_is_known_by_the_stream_that_systemd_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert log.stderr_is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")
        assert not log.stderr_is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", "nonsense")
        assert not log.stderr_is_journal(stream)


def test_without_a_journal_socket_lines_have_level_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "JOURNAL_SOCKET", "/nonexistent/journal")
    stream, logger = lines("journal")
    logger.warning("first\nsecond")
    assert stream.getvalue().splitlines() == ["<4>lmd.test: first", "<4>second"]


def test_exceptions_are_told() -> None:
    stream, logger = lines("json")
    try:
        raise ValueError("the reason")
    except ValueError:
        logger.exception("failed")
    assert "the reason" in json.loads(stream.getvalue())["exception"]
    assert sys.exc_info() == (None, None, None)
