"""The daemon alone: how many tokens a second it streams to its clients on one core, and what each costs it.

    python -m tests.bench.sse [--streams 32] [--rounds 5] [--write docs/benchmarks.md]

The real daemon, pinned to one core; its worker types words (`tests.bench.typist`), so that everything but the engine is
there: channel, parser, dialect, HTTP. Worker and clients have the other cores. Every token must arrive. Where clients
do not keep up, several become one event, which costs the daemon less: the table tells how many events there were.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.bench.daemon import lmd
from tests.bench.machine import busy, machine, versions
from tests.bench.report import put_block
from tests.bench.server import Server, ServerFailed, Setup, run_until_signalled
from tests.bench.stream import RequestFailed
from tests.bench.typist import text_of

TARGET = 25_000
"""SSE tokens/s on one core."""
MODEL = Path(__file__).parents[1] / "models" / "tiny-chat.gguf"
"""For its header and its chat template only."""
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
CASES: Mapping[str, Mapping[str, Any]] = {"chat": {}, "chat with a tool offered": {"tools": [TOOL]}}

_EVENT = b"data: "


class Stream(asyncio.Protocol):
    """One request and its answer, which is kept to be checked: reading must cost less than what is measured."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._pieces: list[bytes] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)

    def check(self, n_tokens: int) -> int:
        """How many events the text came in. RequestFailed where the answer is not the typist's, and whole."""
        head, _, body = b"".join(self._pieces).partition(b"\r\n\r\n")
        if b" 200 " not in head.splitlines()[0]:
            raise RequestFailed(f"{head.splitlines()[0]!r}: {body[:500]!r}")
        payloads = [line[len(_EVENT) :] for line in body.splitlines() if line.startswith(_EVENT)]
        if not payloads or payloads[-1] != b"[DONE]":
            raise RequestFailed(f"a stream broke off after {len(payloads)} events")
        chunks = [json.loads(payload) for payload in payloads[:-1]]
        texts = [text for chunk in chunks if (text := chunk["choices"][0]["delta"].get("content"))]
        if "".join(texts).lstrip() != text_of(n_tokens).lstrip():
            raise RequestFailed(f"{n_tokens} tokens were typed, but {''.join(texts)[:200]!r}… came")
        return len(texts)


@dataclass(frozen=True, slots=True)
class Figures:
    tokens_per_second: float
    cpu_seconds_per_token: float
    """Of the daemon's process: all its threads, and its share of the kernel's work."""
    events_per_token: float


def _request(server: Server, n_tokens: int, extra: Mapping[str, Any]) -> bytes:
    address = urlsplit(server.url)
    messages = [{"role": "user", "content": "Type."}]
    body = json.dumps(
        {"model": server.model, "messages": messages, "max_tokens": n_tokens, "stream": True, **extra}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def measure(server: Server, n_streams: int, n_tokens: int, extra: Mapping[str, Any]) -> Figures:
    """All streams at once, from the first request to the last answer's end: what the daemon has written and the clients
    have not read yet lies in the kernel, so that between two moments they would not count the same. RequestFailed where
    a stream is not served as it should.
    """
    loop, address = asyncio.get_running_loop(), urlsplit(server.url)
    daemon = psutil.Process(server.pid)
    request = _request(server, n_tokens, extra)
    streams = [Stream(request) for _ in range(n_streams)]
    before, begun = cpu_seconds(daemon), time.perf_counter()
    for stream in streams:
        await loop.create_connection(lambda stream=stream: stream, address.hostname, address.port)  # type: ignore[misc]
    await asyncio.gather(*(stream.ended for stream in streams))
    seconds, used = time.perf_counter() - begun, cpu_seconds(daemon) - before
    n_events = sum(stream.check(n_tokens) for stream in streams)
    n = n_streams * n_tokens
    return Figures(n / seconds, used / n, n_events / n)


def cpu_seconds(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


async def bench(n_streams: int, n_tokens: int, rounds: int) -> dict[str, list[Figures]]:
    """Every case ``rounds`` times, in turn, on one daemon, after a round that does not count."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise ServerFailed("The daemon wants a core to itself, and worker and clients another: there is only one.")
    own, others = cpus[:1], cpus[1:]
    os.sched_setaffinity(0, others)
    names = (",".join(map(str, own)), ",".join(map(str, others)))
    command = (sys.executable, "-m", "tests.bench.typist", "daemon", *names)
    setup = Setup(models=(MODEL,), threads=1, parallel=n_streams, n_ctx=4096)
    figures: dict[str, list[Figures]] = {name: [] for name in CASES}
    try:
        async with lmd(setup, ["-o", "models.standby=false"], command=command) as server:
            for number in range(-1, rounds):
                for name, extra in CASES.items():
                    found = await measure(server, n_streams, n_tokens, extra)
                    if number >= 0:
                        figures[name].append(found)
    finally:
        os.sched_setaffinity(0, cpus)
    return figures


def report(figures: Mapping[str, Sequence[Figures]], n_streams: int) -> str:
    lines = [
        f"| daemon alone, {n_streams} streams, one core | SSE tokens/s | CPU per token | events per token | target |"
    ]
    lines.append("|---|---:|---:|---:|---|")
    for name, rounds in figures.items():
        speed = median(one.tokens_per_second for one in rounds)
        cpu = median(one.cpu_seconds_per_token for one in rounds) * 1e6
        events = median(one.events_per_token for one in rounds)
        verdict = "" if speed >= TARGET else " **missed**"
        lines.append(f"| {name} | {speed:,.0f} | {cpu:.1f} µs | {events:.2f} | ≥ {TARGET:,}{verdict} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sse", description="What the daemon alone can stream.")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=4000, help="of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    given = parser.parse_args(argv)
    if (load := busy()) > 0.5:
        print(
            f"the machine is not idle (load average {load:.1f}): the figures will be of little worth", file=sys.stderr
        )
    try:
        run_until_signalled(_run(given))
    except (RequestFailed, ServerFailed) as exc:
        raise SystemExit(f"sse: {exc}") from exc


async def _run(given: argparse.Namespace) -> None:
    figures = await bench(given.streams, given.tokens, given.rounds)
    text = (
        f"{report(figures, given.streams)}\n\n{datetime.now(UTC):%Y-%m-%d}, {given.tokens} tokens a stream,"
        f" medians of {given.rounds}; {machine()}; {versions()}."
    )
    print(text)
    if given.write:
        given.write.write_text(put_block(given.write.read_text(), "sse", text))


if __name__ == "__main__":
    main()
