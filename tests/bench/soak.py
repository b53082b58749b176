"""lmd for a long time with models that come and go: is every request answered, and is anything left behind?

    nice python -m tests.bench.soak --minutes 10 --write docs/reliability.md

Three models of which two fit into ``memory_limit``, a TTL of 2 s, and 16 clients that stream, wait for whole answers,
or leave in the middle. They work in bursts with a silence after each, in which everything must leave by itself. What
the daemon holds is counted in every silence; the first ones fill pools and caches that stay, and are not compared.
Exits with 1 where a request was not answered or something grew.
"""

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp

from lmd.library.gguf import read_header
from lmd.loading import LoadParams
from lmd.pool.memory import estimate
from tests.bench.daemon import lmd
from tests.bench.endurance import Held, endure, left_alone, mib
from tests.bench.load import percentile
from tests.bench.machine import machine, versions
from tests.bench.prompts import unshared_chat
from tests.bench.server import Server, ServerFailed, Setup
from tests.bench.stream import RequestFailed, chat_body, new_connections, stream_chat

MODEL = Path(__file__).parents[1] / "models" / "tiny-chat.gguf"
N_MODELS = 3
CLIENTS = 16
TTL_SECONDS = 2.0
BURST_SECONDS = 10.0
SILENCE_SECONDS = 30.0
"""At most: until everything has left."""
WARM_UP = 2
"""Bursts before the first count that later ones are compared with."""
GROWTH_BYTES = 8 * 2**20
"""Resident memory may differ by so much: allocators keep what they had."""


@dataclass(slots=True)
class Outcome:
    asked: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    """By kind: streamed, whole, left (by the client, on purpose)."""
    failed: list[str] = field(default_factory=list)
    ttfts: list[float] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    """In each silence."""
    loads: int = 0
    evictions: int = 0
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """What is wrong, in words; empty where all is well."""
        faults = [f"not answered: {one}" for one in self.failed[:10]]
        lost = self.asked - self.answered.total() - len(self.failed)
        if lost:
            faults.append(f"{lost} requests came to no end")
        counted = self.held[WARM_UP:]
        if len(counted) < 2:
            return [*faults, "too short a time: nothing to compare"]
        return faults + counted[0].outgrown(counted[-1], GROWTH_BYTES)


async def soak(seconds: float, seed: str = "soak") -> Outcome:
    """Bursts and silences for at least ``seconds``. ServerFailed where lmd dies or something does not leave."""
    outcome = Outcome()
    with TemporaryDirectory(prefix="lmd-soak-") as folder:
        models = tuple(Path(folder, f"model-{letter}.gguf") for letter in "abc"[:N_MODELS])
        for path in models:
            shutil.copy(MODEL, path)
        setup = Setup(models=models, threads=1, parallel=4, n_ctx=512)
        log = Path(folder, "log")
        settings = [f"models.ttl={TTL_SECONDS:g}s", "models.max_loaded=0", f"models.memory_limit={_limit(setup)}"]
        async with lmd(setup, [word for one in settings for word in ("-o", one)], log) as server:
            started = time.monotonic()
            number = 0
            while number < WARM_UP + 2 or time.monotonic() - started < seconds:
                await _burst(server, outcome, random.Random(f"{seed}/{number}"))
                if left := await left_alone(server.pid, SILENCE_SECONDS):
                    raise ServerFailed(left)
                outcome.held.append(Held.of(server.pid))
                number += 1
            outcome.seconds = time.monotonic() - started
        told = log.read_text(errors="replace")
        outcome.loads, outcome.evictions = told.count("is loaded"), told.count("its memory is needed")
    return outcome


def _limit(setup: Setup) -> int:
    """Bytes that are enough for two of the models, and not for three."""
    load = LoadParams(context_length=setup.n_ctx, parallel=setup.parallel)
    return estimate(read_header(setup.models[0]), load).full.ram * 5 // 2


async def _burst(server: Server, outcome: Outcome, dice: random.Random) -> None:
    until = time.monotonic() + BURST_SECONDS
    async with new_connections(timeout=120) as session, asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(_client(session, server, outcome, random.Random(dice.random()), until))


async def _client(
    session: aiohttp.ClientSession, server: Server, outcome: Outcome, dice: random.Random, until: float
) -> None:
    while time.monotonic() < until:
        # Not fewer tokens: all of them might be control tokens, and an answer without text counts as none.
        body = chat_body(dice.choice(server.models), unshared_chat(dice, dice.randint(4, 100)), dice.randint(8, 48))
        kind = dice.choices(("streamed", "whole", "left"), (6, 3, 1))[0]
        outcome.asked += 1
        try:
            match kind:
                case "streamed":
                    outcome.ttfts.append((await stream_chat(session, server.url, body)).ttft)
                case "whole":
                    await _whole(session, server, body)
                case "left":
                    await _leave(session, server, body, dice.uniform(0.0, 0.5))
        except (RequestFailed, TimeoutError, aiohttp.ClientError) as exc:
            outcome.failed.append(f"{kind}: {exc!r}"[:300])
        else:
            outcome.answered[kind] += 1
        await asyncio.sleep(dice.choice((0.0, 0.0, 0.05, 0.5)))


async def _whole(session: aiohttp.ClientSession, server: Server, body: dict[str, object]) -> None:
    body = {key: value for key, value in body.items() if key != "stream_options"} | {"stream": False}
    async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise RequestFailed(f"{response.status}: {(await response.text())[:300]}")
        said = await response.json()
    if said["usage"]["completion_tokens"] != body["max_tokens"]:
        raise RequestFailed(f"asked for {body['max_tokens']} tokens, got {said['usage']}")


async def _leave(session: aiohttp.ClientSession, server: Server, body: dict[str, object], seconds: float) -> None:
    """Hang up after ``seconds``, whatever has come by then: nothing, a beginning, or all."""
    try:
        async with asyncio.timeout(seconds):
            await stream_chat(session, server.url, {**body, "max_tokens": 400})
    except TimeoutError:
        pass
    except RequestFailed as exc:
        # `stream_chat` tells the timeout in its own words.
        if not isinstance(exc.__cause__, TimeoutError | asyncio.CancelledError):
            raise


# ── the report ────────────────────────────────────────────────────────────────────────────────


def described(outcome: Outcome) -> str:
    first, last = outcome.held[WARM_UP], outcome.held[-1]
    counts = ", ".join(f"{n} {kind}" for kind, n in sorted(outcome.answered.items()))
    faults = outcome.faults()
    lines = [
        f"| after | burst {WARM_UP + 1} | burst {len(outcome.held)} |",
        "|---|---:|---:|",
        f"| processes | {first.processes} | {last.processes} |",
        f"| file descriptors | {first.files} | {last.files} |",
        f"| threads | {first.threads} | {last.threads} |",
        f"| resident memory of the daemon | {mib(first.rss)} | {mib(last.rss)} |",
    ]
    story = (
        f"{outcome.seconds / 60:.1f} minutes of bursts with {CLIENTS} clients, {N_MODELS} models of which two fit, TTL"
        f" {TTL_SECONDS:g} s: {outcome.asked} requests ({counts}), {len(outcome.failed)} failed; {outcome.loads} loads,"
        f" {outcome.evictions} evictions for another model. First text after {percentile(outcome.ttfts, 50):.2f} s"
        f" (median), {max(outcome.ttfts):.2f} s at worst."
    )
    verdict = "Nothing was left behind." if not faults else "**Faults**: " + "; ".join(faults) + "."
    return "\n\n".join(
        ["\n".join(lines), f"{story} {verdict}", f"{datetime.now(UTC):%Y-%m-%d}; {machine()}; {versions()}."]
    )


def main(argv: Sequence[str] | None = None) -> None:
    endure("soak", "Serve for long and count leaks.", soak, described, argv)


if __name__ == "__main__":
    main()
