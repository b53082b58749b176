"""What long runs judge by: a daemon that is left alone, and the one way in which they tell what came of it."""

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bench.endurance import endure, left_alone
from tests.bench.server import ServerFailed

DAEMON = """
import socket, subprocess, sys
workers = [subprocess.Popen(["sleep", "100"]) for _ in range(int(sys.argv[2]))]
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()
print("up", flush=True)
kept = []
try:
    while True:
        kept.append(listening.accept()[0])
        print("accepted", flush=True)
        if not kept[-1].recv(1):
            kept.pop().close()
            print("closed", flush=True)
finally:
    for worker in workers:
        worker.kill()
"""


@dataclass
class Process:
    """Something with workers and a control socket."""

    child: asyncio.subprocess.Process
    path: Path

    async def says(self, word: str) -> None:
        assert self.child.stdout is not None
        assert (await self.child.stdout.readline()).decode().strip() == word

    async def end(self) -> None:
        self.child.send_signal(signal.SIGINT)
        await self.child.wait()


async def started(folder: Path, n_workers: int) -> Process:
    path = folder / "sock"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(path), str(n_workers),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    process = Process(child, path)
    await process.says("up")
    return process


async def test_a_daemon_with_a_standby_worker_and_no_clients_is_left_alone(tmp_path: Path) -> None:
    process = await started(tmp_path, 1)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(process.path))
            await process.says("accepted")
            assert "1 workers and 1 connections" in await left_alone(process.child.pid, 0.0)
        await process.says("closed")
        assert await left_alone(process.child.pid, 0.0) == ""
    finally:
        await process.end()
    assert await left_alone(process.child.pid, 0.0) == "the daemon is gone"


async def test_a_second_worker_is_told(tmp_path: Path) -> None:
    process = await started(tmp_path, 2)
    try:
        assert "2 workers and 0 connections" in await left_alone(process.child.pid, 0.0)
    finally:
        await process.end()


@dataclass
class Came:
    wrong: list[str] = field(default_factory=list)

    def faults(self) -> list[str]:
        return self.wrong


def test_what_came_is_written_and_faults_are_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    asked: list[tuple[float, str]] = []

    async def run(seconds: float, seed: str) -> Came:
        asked.append((seconds, seed))
        return Came(["it leaks"] if seed == "bad" else [])

    words = ["--minutes", "0.5", "--write", str(page)]
    endure("soak", "d", run, lambda came: f"{len(came.faults())} faults", words)
    assert "<!-- measured: soak -->\n0 faults\n" in page.read_text()
    with pytest.raises(SystemExit) as ended:
        endure("soak", "d", run, lambda came: f"{len(came.faults())} faults", [*words, "--seed", "bad"])
    assert ended.value.code == 1
    assert "1 faults" in page.read_text() and "it leaks" in capsys.readouterr().err
    assert asked == [(30.0, "soak"), (30.0, "bad")]


def test_a_server_that_fails_ends_the_run_in_words() -> None:
    async def run(seconds: float, seed: str) -> Came:
        raise ServerFailed("it died")

    with pytest.raises(SystemExit, match="chaos: it died"):
        endure("chaos", "d", run, lambda _: "", [])
