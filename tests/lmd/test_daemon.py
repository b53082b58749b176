"""The daemon's life, from outside: real process, real workers, signals."""

import json
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.lmd.client import LONG, SHORT, alive, control, events, eventually, get, post


def test_sigterm_stops_an_idle_daemon_and_leaves_nothing(start_daemon: Any) -> None:
    daemon = start_daemon()
    assert post(daemon.url, SHORT).status == 200
    workers = daemon.workers()
    assert workers
    assert daemon.stop() == 0
    assert not any(alive(pid) for pid in workers)
    assert not daemon.socket.exists()
    left = {path.name for path in daemon.directory.iterdir()}
    assert left <= {"models", "presets", "lmd.toml", "log", "cache", "state"}


def test_draining_lets_a_stream_end_and_refuses_new_requests(start_daemon: Any) -> None:
    daemon = start_daemon()
    stream = events(post(daemon.url, {**LONG, "max_tokens": 1500}))
    next(stream)
    daemon.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: get(daemon.url, "/health")[0] == 503)
    refused = post(daemon.url, SHORT)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert json.loads(refused.read())["error"]["code"] == "draining"
    *_, last, done = stream
    assert done == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "length"
    assert daemon.wait() == 0


def test_a_second_signal_cuts_the_stream_with_an_error(start_daemon: Any) -> None:
    daemon = start_daemon()
    stream = events(post(daemon.url, LONG))
    next(stream)
    daemon.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: get(daemon.url, "/health")[0] == 503)
    daemon.process.send_signal(signal.SIGINT)
    *_, last = stream
    assert last["error"]["code"] == "draining"
    assert daemon.wait() == 0
    assert not daemon.socket.exists()


def test_the_drain_has_a_limit(start_daemon: Any) -> None:
    daemon = start_daemon(arguments=["-o", "server.drain_timeout=300ms"])
    stream = events(post(daemon.url, LONG))
    next(stream)
    daemon.process.send_signal(signal.SIGTERM)
    *_, last = stream
    assert last["error"]["code"] == "draining"
    assert daemon.wait() == 0


def test_no_worker_outlives_a_killed_daemon(start_daemon: Any) -> None:
    daemon = start_daemon()
    stream = events(post(daemon.url, LONG))
    next(stream)
    workers = daemon.workers()
    assert workers
    daemon.process.kill()
    daemon.wait()
    assert eventually(lambda: not any(alive(pid) for pid in workers), seconds=1)


def test_a_killed_worker_ends_its_stream_with_an_error_and_the_next_request_gets_a_fresh_one(
    start_daemon: Any,
) -> None:
    daemon = start_daemon(presets={"other": 'model = "tiny-draft"\n'})
    other = events(post(daemon.url, {**LONG, "model": "other", "max_tokens": 3000}))
    next(other)
    stream = events(post(daemon.url, LONG))
    next(stream)
    rows = {row["id"]: row for row in control(daemon.socket, "/instances")}
    os.kill(rows["tiny-chat"]["pid"], signal.SIGKILL)
    *_, last = stream
    assert last["error"]["code"] == "worker_died"
    assert last["error"]["type"] == "server_error"
    fresh = post(daemon.url, SHORT)
    assert fresh.status == 200
    assert json.loads(fresh.read())["choices"][0]["text"].startswith("1, 2, 3")
    *_, last, done = other
    assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    now = {row["id"]: row["pid"] for row in control(daemon.socket, "/instances")}
    assert now["tiny-chat"] != rows["tiny-chat"]["pid"]
    assert now["other"] == rows["other"]["pid"]


def test_the_control_socket_has_its_mode(start_daemon: Any) -> None:
    daemon = start_daemon(arguments=["-o", "control.mode=0600"])
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600


def test_a_second_daemon_on_the_same_socket_is_refused(daemon: Any) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "lmd", "--config", str(daemon.directory / "lmd.toml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert str(daemon.socket) in answer.stderr
    assert "Traceback" not in answer.stderr
    assert get(daemon.url, "/health")[0] == 200


def test_a_port_in_use_is_one_clear_line(daemon: Any, tmp_path: Path) -> None:
    port = str(urlsplit(daemon.url).port)
    with tempfile.TemporaryDirectory() as directory:
        answer = subprocess.run(
            [
                *(sys.executable, "-m", "lmd", "--config", str(daemon.directory / "lmd.toml")),
                *("--port", port, "--socket", f"{directory}/s"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert list(Path(directory).iterdir()) == []
    assert answer.returncode == 1
    problem, hint = answer.stderr.strip().splitlines()
    assert f"Port {port}" in problem and "in use" in problem
    assert "--port 0" in hint


def test_the_socket_of_a_killed_daemon_is_taken_over(start_daemon: Any) -> None:
    first = start_daemon()
    first.process.kill()
    first.wait()
    assert first.socket.exists()
    second = start_daemon(arguments=["--socket", str(first.socket)])
    assert control(first.socket, "/status")["pid"] == second.pid
    assert second.stop() == 0
    assert not first.socket.exists()


def test_sighup_reloads_the_presets(start_daemon: Any) -> None:
    daemon = start_daemon()
    assert post(daemon.url, {**SHORT, "model": "late"}).status == 404
    (daemon.presets / "late.toml").write_text('model = "tiny-chat"\n')
    daemon.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: get(daemon.url, "/v1/models/late")[0] == 200)
    (daemon.presets / "late.toml").write_text("model = 3\n")
    daemon.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: bool(control(daemon.socket, "/status").get("problems")))
    assert get(daemon.url, "/v1/models/late")[0] == 200


def test_a_preset_can_be_loaded_before_ready(start_daemon: Any) -> None:
    presets = {"warm": 'model = "tiny-chat"\npreload = true\n', "gone": 'model = "no-such-model"\npreload = true\n'}
    daemon = start_daemon(presets=presets)
    assert [(row["id"], row["state"]) for row in control(daemon.socket, "/instances")] == [("warm", "ready")]
    assert "no-such-model" in daemon.log


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """systemd's end of NOTIFY_SOCKET."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{directory}/notify")
        server.settimeout(20)
        yield server


def until(manager: socket.socket, wanted: str) -> str:
    while True:
        said = manager.recv(4096).decode()
        if wanted in said.splitlines():
            return said


def test_the_service_manager_sees_the_preload(start_daemon: Any, manager: socket.socket) -> None:
    presets = {"warm": 'model = "tiny-chat"\npreload = true\n'}
    with ThreadPoolExecutor(1) as reader:  # meanwhile: more states are told than the socket holds
        states = ("EXTEND_TIMEOUT_USEC=60000000", "STATUS=preloading warm: 0%", "READY=1")
        told = reader.submit(lambda: [until(manager, state) for state in states])
        start_daemon(presets=presets, environ={"NOTIFY_SOCKET": manager.getsockname()})
        assert ": 1 models in memory" in told.result()[-1]


def test_the_service_manager_is_told_everything(start_daemon: Any, manager: socket.socket) -> None:
    daemon = start_daemon(environ={"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1000000"})
    assert f"STATUS=serving on {daemon.url}" in until(manager, "READY=1")
    until(manager, "WATCHDOG=1")
    daemon.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in until(manager, "RELOADING=1")
    until(manager, "READY=1")
    daemon.process.send_signal(signal.SIGTERM)
    assert "STATUS=draining" in until(manager, "STOPPING=1")
    assert daemon.wait() == 0


BLOCKS = """
import ctypes
from lmd.daemon import give_back_large_blocks

class Malloc(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split() + list("abcde")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Malloc
if ARM:
    give_back_large_blocks()
body = bytes(4 << 20)
del body
before = mallinfo2().hblks
body = bytes(2 << 20)
print(mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps them")
def test_what_large_bodies_took_goes_back_to_the_system() -> None:
    """A block that is mapped by itself is unmapped when it is freed; glibc takes it from its heap by default."""
    apart = [
        subprocess.run(
            [sys.executable, "-c", BLOCKS.replace("ARM", str(arm))], capture_output=True, text=True, check=True
        ).stdout
        for arm in (False, True)
    ]
    assert apart == ["0\n", "1\n"]
