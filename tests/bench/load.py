"""A closed-loop load generator: N clients, each sending its next request when its last answer has ended.

    python -m tests.bench.load http://127.0.0.1:1234 --model M --clients 8 --prompt-tokens 128 --max-tokens 64

Every request opens its own connection, streams, and makes exactly ``max_tokens`` tokens (``ignore_eos``,
temperature 0). Works against any server with OpenAI's chat completions. Prints JSON.
"""

import argparse
import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field

import aiohttp

from tests.bench.prompts import Message, n_words, unshared_chat
from tests.bench.stream import RequestFailed, Timeline, chat_body, new_connections, stream_chat

PromptSource = Callable[[int, int], Sequence[Message]]
"""``source(client, turn)``: what that client sends as its request number ``turn``, both counted from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send. Each of ``clients`` sends ``turns`` requests, one after the other."""

    clients: int
    prompt_tokens: int = 128
    max_tokens: int = 64
    turns: int = 3
    seed: str = "0"
    tells_usage: bool = True
    """The server tells a stream's usage (`stream_chat`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of it. Times in seconds; ``gap`` is the time between two pieces of one stream's text."""

    clients: int
    requests: int
    prompt_tokens: float
    """Median, as the server counted them."""
    cached_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    """All completion tokens over the time from the first request sent to the last answer ended."""
    ttft_p50: float
    ttft_p99: float
    ttft_max: float
    gap_p50: float
    gap_p99: float
    gap_max: float
    timelines: Sequence[Timeline] = field(default=(), repr=False)

    def as_json(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if name != "timelines"}


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least ``percent`` % of ``values`` do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def summarize(timelines: Sequence[Timeline], clients: int) -> Result:
    """Figures over all requests of one run, of which there must be at least one."""
    ttfts = [timeline.ttft for timeline in timelines]
    gaps = [gap for timeline in timelines for gap in timeline.gaps] or [0.0]
    seconds = max(timeline.ended for timeline in timelines) - min(timeline.sent for timeline in timelines)
    completion_tokens = sum(timeline.completion_tokens for timeline in timelines)
    return Result(
        clients=clients,
        requests=len(timelines),
        prompt_tokens=percentile([timeline.prompt_tokens for timeline in timelines], 50),
        cached_tokens=sum(timeline.cached_tokens for timeline in timelines),
        completion_tokens=completion_tokens,
        seconds=seconds,
        tokens_per_second=completion_tokens / seconds,
        ttft_p50=percentile(ttfts, 50),
        ttft_p99=percentile(ttfts, 99),
        ttft_max=max(ttfts),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        gap_max=max(gaps),
        timelines=tuple(timelines),
    )


def unshared_prompts(seed: str, words: int) -> PromptSource:
    """A prompt of ``words`` words for each client and turn; no two begin alike."""
    return lambda client, turn: unshared_chat(random.Random(f"{seed}/{client}/{turn}"), words)


async def run_clients(clients: int, turns: int, request: Callable[[int, int], Awaitable[Timeline]]) -> list[Timeline]:
    """Run ``request(client, turn)`` for every client at once and every turn in order. The first failure ends all."""

    async def client(number: int) -> list[Timeline]:
        return [await request(number, turn) for turn in range(turns)]

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(client(number)) for number in range(clients)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [timeline for task in tasks for timeline in task.result()]


async def template_overhead(session: aiohttp.ClientSession, url: str, model: str, *, tells_usage: bool = True) -> int:
    """Tokens that the chat template adds to a prompt's words. Also the warm-up: it loads the model."""
    messages = unshared_chat(random.Random("warm-up"), 100)
    body = chat_body(model, messages, 8)
    if tells_usage:
        return (await stream_chat(session, url, body)).prompt_tokens - n_words(messages)
    whole = {key: value for key, value in body.items() if not key.startswith("stream")}
    async with session.post(f"{url}/v1/chat/completions", json=whole) as response:
        if response.status != 200:
            raise RequestFailed(f"{response.status}: {(await response.text())[:500]}")
        return int((await response.json())["usage"]["prompt_tokens"]) - n_words(messages)


async def run(url: str, model: str, load: Load) -> Result:
    """Warm ``model`` up, then put ``load`` on the server at ``url``. RequestFailed where one request failed."""
    async with new_connections() as session:
        overhead = await template_overhead(session, url, model, tells_usage=load.tells_usage)
        words = max(2, load.prompt_tokens - overhead)
        prompts = unshared_prompts(load.seed, words)

        async def request(client: int, turn: int) -> Timeline:
            body = chat_body(model, prompts(client, turn), load.max_tokens)
            return await stream_chat(session, url, body, tells_usage=load.tells_usage)

        return summarize(await run_clients(load.clients, load.turns, request), load.clients)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description="Closed-loop load; prints JSON.")
    parser.add_argument("url", help="where the server listens, without /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3, help="requests of each client")
    parser.add_argument("--seed", default="0")
    given = vars(parser.parse_args(argv))
    url, model = given.pop("url").rstrip("/"), given.pop("model")
    try:
        result = asyncio.run(run(url, model, Load(**given)))
    except RequestFailed as exc:
        raise SystemExit(f"load: {exc}") from exc
    print(json.dumps(result.as_json(), indent=2))


if __name__ == "__main__":
    main()
