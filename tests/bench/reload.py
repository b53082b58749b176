"""How soon the edit of a preset counts: from the end of its save to the answer of the first request that shows it.

    python -m tests.bench.reload [--edits 300] [--write docs/reliability.md]

A daemon with a small model, whose preset is edited in its sampling, its aliases or its chat settings, saved in each of
the ways that editors and deployments have, at any moment of the daemon's own looks at the file. Requests follow each
other without a pause until one shows the edit. Meanwhile streams are open, none of which may break, and the model may
not be loaded anew.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from tests.bench.daemon import lmd
from tests.bench.load import percentile
from tests.bench.machine import busy, machine, versions
from tests.bench.report import put_block
from tests.bench.server import Server, ServerFailed, Setup, run_until_signalled
from tests.bench.soak import MODEL
from tests.bench.stream import RequestFailed, chat_body, new_connections, stream_chat
from tests.lmd.config.saving import SAVES

PROMISED = 1.0
"""Seconds."""
PATIENCE = 30.0
"""Seconds after which an edit that does not show is given up."""
STREAM_TOKENS = 2000
MESSAGES = [{"role": "user", "content": "Count to three."}]


@dataclass(frozen=True, slots=True)
class State:
    """What the preset says. Each edit changes one member."""

    max_tokens: int = 1
    alias: str = "alias-0"
    prompt_words: int = 1

    @property
    def text(self) -> str:
        return "\n".join(
            [
                f'model = "{MODEL.stem}"',
                f'aliases = ["{self.alias}"]',
                "[sampling]",
                "temperature = 0",
                f"max_tokens = {self.max_tokens}",
                "[chat]",
                f"system_prompt = {json.dumps(' '.join(['brief'] * self.prompt_words))}",
                "",
            ]
        )

    def edited(self, what: str, number: int) -> "State":
        match what:
            case "sampling":
                return State(self.max_tokens % 8 + 1, self.alias, self.prompt_words)
            case "aliases":
                return State(self.max_tokens, f"alias-{number}", self.prompt_words)
            case _:
                return State(self.max_tokens, self.alias, self.prompt_words % 8 + 1)


EDITS = ("sampling", "aliases", "chat")


@dataclass(slots=True)
class Outcome:
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """From the end of the save to the answer that shows it, by way of saving and kind of edit."""
    streams: int = 0
    """Read to their end while edits came in."""
    loads: int = 0

    def of(self, name: str) -> list[float]:
        """Those of one way of saving, or of one kind of edit."""
        return [value for key, values in self.seconds.items() if name in key for value in values]

    def faults(self) -> list[str]:
        late = [value for values in self.seconds.values() for value in values if value > PROMISED]
        faults = [f"{len(late)} edits took more than {PROMISED:g} s"] if late else []
        return faults + ([f"the model was loaded {self.loads} times"] if self.loads != 1 else [])


async def measure(edits: int, seed: str = "reload") -> Outcome:
    """RequestFailed where a stream breaks or an edit never shows, ServerFailed where lmd dies."""
    outcome, dice = Outcome(), random.Random(seed)
    combinations = [(save, what) for save in SAVES for what in EDITS]
    with TemporaryDirectory(prefix="lmd-reload-") as folder:
        log, presets = Path(folder, "log"), Path(folder, "presets.d")
        presets.mkdir()
        (presets / "edited.toml").write_text(State().text)
        setup = Setup(models=(MODEL,), threads=1, parallel=4, n_ctx=4096)
        async with lmd(setup, ["--presets-dir", str(presets)], log) as server, new_connections() as session:
            streams = asyncio.ensure_future(_streams(session, server, outcome))
            state = State()
            usage = await _asked(session, server, "edited")
            for number in range(1, edits + 1):
                save, what = combinations[number % len(combinations)]
                await asyncio.sleep(dice.uniform(0.0, 0.7))
                state = state.edited(what, number)
                name, before = (state.alias, None) if what == "aliases" else ("edited", usage)
                save_it = partial(save, presets / "edited.toml", state.text)
                seconds, usage = await _edit(session, server, save_it, name, before)
                outcome.seconds.setdefault((save.__name__, what), []).append(seconds)
                if streams.done():
                    await streams
            streams.cancel()
        outcome.loads = log.read_text(errors="replace").count("is loaded")
    return outcome


async def _edit(
    session: aiohttp.ClientSession,
    server: Server,
    save: Callable[[], None],
    name: str,
    before: dict[str, Any] | None,
) -> tuple[float, dict[str, Any]]:
    """Save; seconds until an answer under ``name`` is another one than ``before``, and that answer's usage."""
    await asyncio.to_thread(save)
    saved = time.perf_counter()
    while time.perf_counter() < saved + PATIENCE:
        usage = await _asked(session, server, name)
        seconds = time.perf_counter() - saved
        if usage is not None and usage != before:
            return seconds, usage
    raise RequestFailed(f"an edit did not show under '{name}' within {PATIENCE:g} s")


async def _asked(session: aiohttp.ClientSession, server: Server, name: str) -> dict[str, Any] | None:
    """Tokens of prompt and answer, which tell the preset's settings; None where nothing has that name (yet)."""
    body = {"model": name, "messages": MESSAGES, "ignore_eos": True}
    async with session.post(f"{server.url}/v1/chat/completions", json=body) as response:
        if response.status == 404:
            return None
        if response.status != 200:
            raise RequestFailed(f"{response.status}: {(await response.text())[:300]}")
        usage = (await response.json())["usage"]
        return {key: usage[key] for key in ("prompt_tokens", "completion_tokens")}


async def _streams(session: aiohttp.ClientSession, server: Server, outcome: Outcome) -> None:
    """One stream after the other, each over several edits."""
    while True:
        timeline = await stream_chat(session, server.url, chat_body("edited", MESSAGES, STREAM_TOKENS))
        if timeline.completion_tokens != STREAM_TOKENS:
            raise RequestFailed(f"a stream ended after {timeline.completion_tokens} tokens of {STREAM_TOKENS}")
        outcome.streams += 1


def described(outcome: Outcome, load: float) -> str:
    lines = ["| edits | number | p50 | p99 | worst |", "|---|---:|---:|---:|---:|"]
    names = [("saved: ", save.__name__) for save in SAVES] + [("changed: ", what) for what in EDITS]
    for kind, name in names:
        lines.append(_row(kind + name.replace("_", " "), outcome.of(name)))
    lines.append(_row("all", [value for values in outcome.seconds.values() for value in values]))
    faults = outcome.faults()
    verdict = f"All within {PROMISED:g} s." if not faults else "**Faults**: " + "; ".join(faults) + "."
    story = f"{outcome.streams} streams of {STREAM_TOKENS} tokens meanwhile, none broke. {verdict}"
    where = f"{datetime.now(UTC):%Y-%m-%d}; load {load:.1f} at the start; {machine()}; {versions()}."
    return "\n\n".join(["\n".join(lines), story, where])


def _row(title: str, seconds: Sequence[float]) -> str:
    cells = [f"{percentile(seconds, percent) * 1000:.0f} ms" for percent in (50, 99, 100)]
    return f"| {title} | {len(seconds)} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reload", description="Time until edits count.")
    parser.add_argument("--edits", type=int, default=300, help="at least 18: one of each kind")
    parser.add_argument("--write", type=Path, help="put the figures into this Markdown file")
    given = parser.parse_args(argv)
    if given.edits < len(SAVES) * len(EDITS):
        parser.error(f"--edits: at least {len(SAVES) * len(EDITS)}")
    run_until_signalled(_run(given.edits, given.write))


async def _run(edits: int, write: Path | None) -> None:
    load = busy()
    try:
        outcome = await measure(edits)
    except (ServerFailed, RequestFailed) as exc:
        raise SystemExit(f"reload: {exc}") from exc
    text = described(outcome, load)
    print(text)
    if write:
        write.write_text(put_block(write.read_text(), "reload", text))
    if outcome.faults():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
