"""lmd while everything around it goes wrong: is every request answered or refused, and is anything left behind?

    nice python -m tests.bench.chaos --minutes 10 --write docs/reliability.md

Rounds of disorder, each followed by a silence in which all is mended and lmd must be well again. In the first half of
the rounds the daemon is killed and started again as systemd would; the second half is one daemon's life, whose
processes, files, threads and memory are compared from silence to silence. As root the daemon's folders are a small disk
in memory that is filled; with a C compiler its wall clock jumps. Exits with 1 where anything was not as it should be.
"""

import asyncio
import json
import random
import re
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from lmd.library.gguf import read_header
from lmd.loading import LoadParams
from lmd.pool.memory import estimate
from tests.bench.chaos_clients import MODELS, STALL_SECONDS, Tally, World, chat, client, exchange, post, verdict
from tests.bench.chaos_vandals import Vandals, mounted, preload, unmount
from tests.bench.endurance import Held, endure, left_alone
from tests.bench.machine import machine, versions
from tests.bench.server import ServerFailed
from tests.bench.supervised import Supervised

TINY = Path(__file__).parents[1] / "models" / "tiny-chat.gguf"
CLIENTS = 12
ROUND_SECONDS = 40.0
SILENCE_SECONDS = 90.0
"""At most: until everything has left."""
LEAST_ROUNDS = 5
"""One with daemons that die; one that fills what stays; three to compare."""
GROWTH_BYTES = 16 * 2**20
"""Resident memory may differ by so much: requests of megabytes leave allocators with holes."""

SETTINGS = """\
context_length = 512
parallel = 2
[models]
ttl = "2s"
memory_limit = {limit}
queue_timeout = "20s"
load_timeout = "30s"
prompt_cache = "16MiB"
[limits]
receive_timeout = "5s"
stall_timeout = "{stall:g}s"
[conversations]
max_size = "2MiB"
"""


_TRACEBACK = re.compile(r"^Traceback .*?\n(?=\S)([^\n]*)", re.DOTALL | re.MULTILINE)
"""With the line that says which exception."""


@dataclass(slots=True)
class Outcome:
    tally: Tally
    vandals: Vandals
    rounds: int = 0
    unwell: list[str] = field(default_factory=list)
    """What was wrong in a silence."""
    held: list[Held] = field(default_factory=list)
    """In the silences of the last daemon's life, the first left out."""
    tracebacks: list[str] = field(default_factory=list)
    lives: int = 0
    seconds: float = 0.0
    could_not: list[str] = field(default_factory=list)
    """What was not tried, and why."""

    def faults(self) -> list[str]:
        faults = [*self.tally.faults, *self.vandals.faults, *self.unwell, *self.tracebacks]
        lost = self.tally.asked.total() - self.tally.ended.total()
        if lost:
            faults.append(f"{lost} requests came to no end")
        if len(self.held) < 2:
            return [*faults, "too short a time: nothing to compare"]
        return faults + self.held[0].outgrown(self.held[-1], GROWTH_BYTES)


async def chaos(seconds: float, seed: str = "chaos") -> Outcome:
    """Rounds for at least ``seconds``. ServerFailed where lmd does not come back."""
    with TemporaryDirectory(prefix="lmd-chaos-") as name:
        top = Path(name)
        folder = top / "disk"
        folder.mkdir()
        is_small = mounted(folder)
        try:
            return await _in_folder(top, folder, is_small, seconds, seed)
        finally:
            if is_small:
                unmount(folder)


async def _in_folder(top: Path, folder: Path, is_small: bool, seconds: float, seed: str) -> Outcome:
    environ, clock = preload(top)
    limit = estimate(read_header(TINY), LoadParams(context_length=512, parallel=2)).full.ram * 5 // 2
    settings = SETTINGS.format(limit=limit, stall=STALL_SECONDS / 2)
    daemon = Supervised(folder, settings, environ, logs=top)
    daemon.config.write_text(daemon.config.read_text().replace("[server]", '[server]\nmax_body = "2MiB"', 1))
    shutil.copy(daemon.config, top / "lmd.toml.right")
    for model in MODELS:
        shutil.copy(TINY, folder / "models" / f"{model}.gguf")
    (folder / "presets.d" / "steady.toml").write_text('model = "model-a"\n[sampling]\ntemperature = 0\n')
    vandals = Vandals(daemon, random.Random(f"{seed}/vandals"), clock, is_small)
    outcome = Outcome(Tally(), vandals)
    outcome.could_not += [] if is_small else ["a full disk (only root may mount one)"]
    outcome.could_not += [] if clock else ["clock jumps (no C compiler)"]
    started = time.monotonic()
    async with daemon:
        await daemon.start()
        until_half = started + seconds / 2
        settled = -1
        while outcome.rounds < LEAST_ROUNDS or settled < 2 or time.monotonic() - started < seconds:
            daemon_too = outcome.rounds == 0 or (time.monotonic() < until_half and settled < 0)
            await _round(outcome, daemon_too, random.Random(f"{seed}/{outcome.rounds}"))
            await _silence(outcome)
            outcome.rounds += 1
            settled = -1 if daemon_too else settled + 1
            if settled > 0:
                outcome.held.append(Held.of(daemon.pid))
        with suppress(psutil.NoSuchProcess):
            children = vandals.children()
            await daemon.end(signal.SIGTERM)
            outcome.unwell += [f"worker {one.pid} outlived its daemon" for one in psutil.wait_procs(children, 5)[1]]
        if daemon.exit_code != 0:
            outcome.unwell.append(f"lmd ended with {daemon.exit_code}")
    outcome.seconds, outcome.lives = time.monotonic() - started, daemon.life
    for log in daemon.logs:
        told = log.read_text(errors="replace")
        if found := _TRACEBACK.search(told):
            around = told[max(0, found.start() - 300) : found.end() + 300]
            outcome.tracebacks.append(f"an exception in the log: {found[1]}\n{log.name}: …{around}")
    return outcome


async def _round(outcome: Outcome, daemon_too: bool, dice: random.Random) -> None:
    vandals = outcome.vandals
    until = asyncio.get_running_loop().time() + ROUND_SECONDS
    disorder = [asyncio.ensure_future(one) for one in vandals.at_work(daemon_too)]
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                world = World(vandals.daemon.port, random.Random(dice.random()), vandals.interrupted)
                group.create_task(client(world, outcome.tally, until))
    finally:
        for one in disorder:
            one.cancel()
        for ended in await asyncio.gather(*disorder, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def _silence(outcome: Outcome) -> None:
    """Mend everything, and see that lmd is well: it says so, serves each model, and lets go of all."""
    vandals, daemon = outcome.vandals, outcome.vandals.daemon
    await vandals.restarted()
    if not daemon.is_up:
        raise ServerFailed(f"lmd is gone: {vandals.faults[-1:]}")
    vandals.mend()
    status, said = await vandals.lmctl("reload")
    if status:
        outcome.unwell.append(f"lmctl reload ended with {status}: {said}")
    dice = random.Random(0)
    for model in MODELS:
        status, said = await vandals.lmctl("load", model, "--ttl", "2s")  # what died often is in a back-off otherwise
        body = chat(World(daemon.port, dice, vandals.interrupted)) | {"model": model}
        answer = verdict(
            await exchange(World(daemon.port, dice, vandals.interrupted), post("/v1/chat/completions", body))
        )
        if status or answer != "answered":
            outcome.unwell.append(f"{model}: {answer}; lmctl load ended with {status}: {said}")
    if left := await left_alone(daemon.pid, SILENCE_SECONDS):
        outcome.unwell.append(left)
    status, said = await vandals.lmctl("--json", "status")
    told = json.loads(said) if status == 0 else {}
    if status or told["state"] != "serving" or told.get("problems") or told["active_requests"]:
        outcome.unwell.append(f"lmctl status ended with {status}: {said}")


# ── the report ────────────────────────────────────────────────────────────────────────────────


def described(outcome: Outcome) -> str:
    tally, vandals, faults = outcome.tally, outcome.vandals, outcome.faults()
    lines = ["| what was done | times |", "|---|---:|"]
    lines += [f"| {deed} | {n} |" for deed, n in sorted(vandals.deeds.items())]
    ends = ["| what requests came to | number |", "|---|---:|"]
    ends += [f"| {end} | {n} |" for end, n in tally.ended.most_common()]
    story = (
        f"{outcome.seconds / 60:.1f} minutes, {outcome.rounds} rounds with {CLIENTS} clients and {len(MODELS)} models"
        f" of which two fit, {outcome.lives} lives of the daemon"
    )
    if vandals.starts:
        story += f" (back after {sorted(vandals.starts)[len(vandals.starts) // 2]:.1f} s, median)"
    asked = ", ".join(f"{n} {kind}" for kind, n in tally.asked.most_common())
    story += f". Requests: {asked}."
    if outcome.held:
        first, last = outcome.held[0], outcome.held[-1]
        story += (
            f" The last daemon held, after its second and after its last round: processes {first.processes} and"
            f" {last.processes}, file descriptors {first.files} and {last.files}, threads {first.threads} and"
            f" {last.threads}; memory in MiB {', '.join(f'{one.rss / 2**20:.0f}' for one in outcome.held)}."
        )
    if outcome.could_not:
        story += f" Not tried: {', '.join(outcome.could_not)}."
    verdict_ = "`lmctl status` was healthy after every round; nothing was left behind."
    if faults:
        verdict_ = "**Faults**: " + "; ".join(one.splitlines()[0][:300] for one in faults) + "."
    parts = ["\n".join(lines), "\n".join(ends), f"{story} {verdict_}"]
    return "\n\n".join([*parts, f"{datetime.now(UTC):%Y-%m-%d}; {machine()}; {versions()}."])


def main(argv: Sequence[str] | None = None) -> None:
    endure("chaos", "Spoil everything around lmd.", chaos, described, argv)


if __name__ == "__main__":
    main()
