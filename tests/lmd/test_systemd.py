import math
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from lmd import systemd


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of NOTIFY_SOCKET."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{directory}/notify")
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", server.getsockname())
        yield server


def test_states_reach_the_manager(manager: socket.socket) -> None:
    notifier = systemd.Notifier()
    notifier.ready("serving")
    assert manager.recv(4096).decode().splitlines() == ["READY=1", "STATUS=serving", f"MAINPID={os.getpid()}"]
    notifier.reloading()
    reloading, monotonic = manager.recv(4096).decode().splitlines()
    assert reloading == "RELOADING=1"
    assert int(monotonic.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping("draining 3 requests")
    assert manager.recv(4096) == b"STOPPING=1\nSTATUS=draining 3 requests"
    notifier.watchdog()
    assert manager.recv(4096) == b"WATCHDOG=1"
    notifier.extend_timeout(1.5)
    assert manager.recv(4096) == b"EXTEND_TIMEOUT_USEC=1500000"
    notifier.extend_timeout(math.inf)
    name, _, microseconds = manager.recv(4096).decode().partition("=")
    assert name == "EXTEND_TIMEOUT_USEC"
    assert 1e14 < int(microseconds) < 2**62


def test_a_status_cannot_smuggle_an_assignment(manager: socket.socket) -> None:
    systemd.Notifier().status("loading x\nREADY=1")
    assert manager.recv(4096) == b"STATUS=loading x READY=1"


def test_a_manager_that_does_not_read_holds_up_nothing_and_hears_the_rest_later(manager: socket.socket) -> None:
    notifier = systemd.Notifier()
    flood = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    flood.setblocking(False)
    flood.connect(manager.getsockname())
    with flood, pytest.raises(BlockingIOError):
        while True:
            flood.send(b"STATUS=flood")
    notifier.ready("serving")  # as any state: it has to return although nobody reads
    for _ in range(3):
        notifier.watchdog()
    heard = []
    while not heard or heard[-1] == b"STATUS=flood":
        notifier.retry()
        heard.append(manager.recv(4096))
    assert heard[-1].startswith(b"READY=1\nSTATUS=serving")
    notifier.retry()
    assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3


def test_a_status_in_any_script_reaches_the_manager(manager: socket.socket) -> None:
    systemd.Notifier().status("preloading 文鳥 → 50%")
    assert manager.recv(4096).decode() == "STATUS=preloading 文鳥 → 50%"


def test_an_abstract_address_is_the_manager_s_too(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"lmd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"\0{name}")
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.Notifier().watchdog()
        assert server.recv(4096) == b"WATCHDOG=1"


def test_a_manager_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    systemd.Notifier().ready("serving")


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.Notifier().ready("serving")


def test_the_watchdog_is_fed_at_twice_its_rate() -> None:
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "10000000"}) == 5
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}) == 5


@pytest.mark.parametrize("environ", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}])
def test_no_watchdog_is_fed_where_none_is_meant_for_us(environ: dict[str, str]) -> None:
    assert systemd.watchdog_interval(environ) is None


_CHILD = """
import os, sys
os.environ["LISTEN_PID"] = sys.argv[1] or str(os.getpid())
from lmd import systemd
passed = systemd.passed_sockets()
print({name: [one.getsockname() for one in found] for name, found in passed.items()})
print("LISTEN_FDS" in os.environ, any(os.get_inheritable(one.fileno()) for found in passed.values() for one in found))
"""


def passed(names: str, pid: str = "") -> list[str]:
    """What a process sees that gets a TCP and a Unix socket as systemd passes them: fds 3 and 4."""
    with tempfile.TemporaryDirectory() as directory, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(f"{directory}/s")
        script = f"exec {tcp.fileno() + 100}<&{tcp.fileno()} {unix.fileno() + 100}<&{unix.fileno()}; "
        script += f'exec 3<&{tcp.fileno() + 100} 4<&{unix.fileno() + 100}; exec "$@"'
        answer = subprocess.run(
            ["bash", "-c", script, "-", sys.executable, "-c", _CHILD, pid],
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": names},
            pass_fds=(tcp.fileno(), unix.fileno()),
            capture_output=True,
            text=True,
            check=True,
        )
        where = f"{{'http': [('127.0.0.1', {tcp.getsockname()[1]})], 'control': ['{directory}/s']}}"
        return [line.replace(where, "both") for line in answer.stdout.splitlines()]


@pytest.mark.parametrize("names", ["http:control", "unknown:unknown", ""])
def test_passed_sockets_are_taken_by_name_or_kind(names: str) -> None:
    assert passed(names) == ["both", "False False"]


def test_sockets_for_another_process_are_left_alone() -> None:
    assert passed("http:control", pid="1") == ["{}", "False False"]
