"""lmctl as its users run it: the installed executable, against a control socket."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.lmctl.fake_daemon import FakeDaemon

LMCTL = Path(sys.executable).with_name("lmctl")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


class Run(Protocol):
    async def __call__(self, *args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Ran: ...


def environment(socket: Path | None, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("LMD_SOCKET", "NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return kept | ({"LMD_SOCKET": str(socket)} if socket else {}) | {"TERM": "xterm-256color"} | more


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "lmd.sock"


@pytest.fixture
async def daemon(socket: Path) -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon(socket).running() as running:
        yield running


@pytest.fixture
def lmctl(socket: Path) -> Run:
    """Run lmctl to its end with LMD_SOCKET at the test's socket, its output piped."""

    async def run(*args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Ran:
        process = await asyncio.create_subprocess_exec(
            LMCTL,
            *args,
            stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(socket) if env is None else env,
        )
        out, err = await process.communicate(stdin.encode() if stdin is not None else None)
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    return run
