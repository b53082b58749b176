"""Server processes under measurement: started, waited for, watched, ended. What lmd and its peers have in common."""

import asyncio
import ctypes
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.bench.stream import RequestFailed

START_SECONDS = 120.0
STOP_SECONDS = 20.0

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class ServerFailed(Exception):
    """A server did not start, or died. Carries the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a server is to serve: the same for every server that is compared.

    With more than one model they take turns in memory: one is loaded at a time (lmd's ``max_loaded``, the
    router of llama-server), and the first request of each loads it.
    """

    models: tuple[Path, ...]
    threads: int = 2
    parallel: int = 8
    n_ctx: int = 2048
    """Tokens for each of the ``parallel`` sequences; the KV cache holds ``n_ctx × parallel``."""
    embeds: bool = False
    """The models make vectors, which llama-server has to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that answers. ``models`` are the names it serves, in the order of `Setup.models`."""

    name: str
    url: str
    pid: int
    models: tuple[str, ...]
    tells_usage: bool = True
    """Its streams end with a count of tokens."""

    @property
    def model(self) -> str:
        return self.models[0]


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def process(command: Sequence[str | Path], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``command`` in its own process group with its output in ``log``; on leaving, SIGTERM, then SIGKILL to all.

    A RequestFailed that ends the context becomes one that tells the end of the log. The server dies with this
    process, however that ends: one left over would spoil all later figures. Enter it on the main thread.
    """
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            *map(str, command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        yield child
    except RequestFailed as exc:
        raise RequestFailed(f"{exc}\nThe end of the server's log:\n{tail(log)}") from exc
    finally:
        if child.returncode is None:
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), STOP_SECONDS)
        except TimeoutError:
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def run_until_signalled(work: Coroutine[None, None, None]) -> None:
    """`asyncio.run` that ends ``work`` on SIGTERM as on SIGINT: servers stop, folders go. Then SystemExit 143."""

    async def watched() -> None:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await task

    try:
        asyncio.run(watched())
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


async def until_healthy(child: asyncio.subprocess.Process, url: str, log: Path, path: str = "/health") -> None:
    """Return once ``path`` answers 200. ServerFailed where the process ends first or takes too long."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while loop.time() < deadline:
            if child.returncode is not None:
                raise ServerFailed(f"the server ended with {child.returncode} before it was ready:\n{tail(log)}")
            try:
                async with session.get(f"{url}{path}") as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.05)
    raise ServerFailed(f"{url}{path} did not answer 200 within {START_SECONDS:.0f} s:\n{tail(log)}")


async def served_models(url: str) -> list[str]:
    """The ids that ``GET /v1/models`` lists."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
        return [row["id"] for row in (await response.json())["data"]]


def names_of(models: Sequence[Path], served: Sequence[str]) -> tuple[str, ...]:
    """For each file the one name in ``served`` that holds its stem. ServerFailed where there is not exactly one."""
    names = []
    for path in models:
        fitting = [name for name in served if path.stem in name]
        if len(fitting) != 1:
            raise ServerFailed(f"{path.name} should be served under one name, but the server lists {list(served)}")
        names += fitting
    return tuple(names)


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
