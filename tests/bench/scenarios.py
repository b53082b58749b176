"""What is measured: one function for each kind of work, given a running server and nothing of which server it is.

A function returns figures by name; `Scenario.rows` says how each is shown and what lmd has to reach. Each round
has a seed of its own, the same for both servers: they get the same prompts, and neither sees one twice.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

from tests.bench.embeddings import random_texts, texts_per_second
from tests.bench.load import Load, percentile, run, run_clients, summarize, template_overhead
from tests.bench.prompts import random_text, shared_chat, unshared_chat
from tests.bench.server import Server
from tests.bench.stream import Timeline, chat_body, new_connections, stream_chat

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the report: the median of a figure, lmd's over the peer's, and the ratio that is wanted."""

    figure: str
    title: str
    unit: Literal["tokens/s", "texts/s", "s", "steps"]
    target: float | None = None
    """At least this ratio for speeds, at most for times. None: told for the reader."""
    absolute: bool = False
    """The target is for lmd's own figure, whatever the peer's is."""

    @property
    def is_speed(self) -> bool:
        return self.unit.endswith("/s")

    def reached(self, theirs: float, ours: float) -> bool:
        if self.target is None:
            return True
        against = ours if self.absolute else ratio(theirs, ours)
        return against >= self.target if self.is_speed else against <= self.target


def ratio(theirs: float, ours: float) -> float:
    return ours / theirs if theirs else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """``measure(server, seed)`` on ``n_models`` models of which one is in memory at a time."""

    name: str
    title: str
    rows: tuple[Row, ...]
    measure: Callable[[Server, str], Awaitable[Figures]]
    n_models: int = 1
    n_ctx: int = 2048
    parallel: int = 8
    any_server: bool = False
    """Servers that tell no usage in their streams can do it too."""
    embeds: bool = False
    """On an embedding model in MiniLM's shape."""


CLIENTS = (1, 4, 8)
BATCH = 512
"""Prompt tokens that either server computes in one step."""


async def throughput(server: Server, seed: str, at: Sequence[int] = CLIENTS) -> Figures:
    """128-token prompts that share nothing, 64 tokens out, ``at`` so many clients in turn."""
    figures: dict[str, float] = {}
    for clients in at:
        turns = 4 if clients == 1 else 2
        load = Load(
            clients=clients,
            prompt_tokens=128,
            max_tokens=64,
            turns=turns,
            seed=f"{seed}/{clients}",
            tells_usage=server.tells_usage,
        )
        result = await run(server.url, server.model, load)
        figures[f"tokens_per_second_{clients}"] = result.tokens_per_second
        figures[f"ttft_p50_{clients}"] = result.ttft_p50
        figures[f"ttft_p99_{clients}"] = result.ttft_p99
        figures[f"gap_p99_{clients}"] = result.gap_p99
    return figures


async def shared_prompt(server: Server, seed: str) -> Figures:
    """Eight clients at once with one 800-token system prompt that the server has never seen, 48 tokens out."""
    async with new_connections() as session:
        await template_overhead(session, server.url, server.model)
        system = random_text(random.Random(f"{seed}/system"), 800)

        async def request(client: int, turn: int) -> Timeline:
            messages = shared_chat(system, random.Random(f"{seed}/{client}"), 12)
            return await stream_chat(session, server.url, chat_body(server.model, messages, 48))

        result = summarize(await run_clients(8, 1, request), 8)
    return {"ttft_max": result.ttft_max, "tokens_per_second": result.tokens_per_second}


async def second_turn(server: Server, seed: str) -> Figures:
    """Eight conversations side by side; the second turn repeats the first with its answer and goes on."""
    async with new_connections() as session:
        await template_overhead(session, server.url, server.model)
        talks = [unshared_chat(random.Random(f"{seed}/{client}"), 300) for client in range(8)]

        async def request(client: int, turn: int) -> Timeline:
            return await stream_chat(session, server.url, chat_body(server.model, talks[client], 32))

        first = await run_clients(8, 1, request)
        for client, (talk, timeline) in enumerate(zip(talks, first, strict=True)):
            more = random_text(random.Random(f"{seed}/{client}/more"), 20)
            talk += [{"role": "assistant", "content": timeline.text}, {"role": "user", "content": more}]
        second = summarize(await run_clients(8, 1, request), 8)
    return {"ttft_p50": second.ttft_p50, "ttft_max": second.ttft_max}


async def long_prompt(server: Server, seed: str) -> Figures:
    """Four streams run; a prompt of 4,000 tokens arrives. How long do the streams stand still at worst?"""
    async with new_connections() as session:
        await template_overhead(session, server.url, server.model)

        async def stream(client: int, n_words: int, max_tokens: int) -> Timeline:
            messages = unshared_chat(random.Random(f"{seed}/{client}"), n_words)
            return await stream_chat(session, server.url, chat_body(server.model, messages, max_tokens))

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(stream(client, 32, 400)) for client in range(4)]
            # The streams are well under way once another client that came after them has had its whole answer.
            await stream(4, 32, 8)
            long = await stream(5, 4000, 8)
    gaps = [
        later - earlier
        for task in running
        for earlier, later in pairwise(task.result().pieces)
        if later >= long.sent and earlier <= long.pieces[0]
    ]
    return {"gap_max": max(gaps), "ttft": long.ttft}


async def cancelled_prompt(server: Server, seed: str, n_long: int = 4000) -> Figures:
    """A prompt of ``n_long`` tokens is given up in the middle: when does a short one get the only sequence there is?

    What a short prompt takes alone is taken off; what is left is the wait, told also in steps of a batch each.
    """
    async with new_connections() as session:
        await template_overhead(session, server.url, server.model)

        def ask(name: str, n_words: int) -> Coroutine[None, None, Timeline]:
            messages = unshared_chat(random.Random(f"{seed}/{name}"), n_words)
            return stream_chat(session, server.url, chat_body(server.model, messages, 4))

        whole = await ask("whole", n_long)
        step = whole.ttft * BATCH / whole.prompt_tokens
        alone = percentile([(await ask(f"alone {n}", 32)).ttft for n in range(5)], 50)
        waits = []
        for n in range(5):
            doomed = asyncio.create_task(ask(f"doomed {n}", n_long))
            await asyncio.sleep(whole.ttft * (0.2 + 0.1 * n))
            doomed.cancel()
            await asyncio.gather(doomed, return_exceptions=True)
            waits.append(max(0.0, (await ask(f"after {n}", 32)).ttft - alone))
    return {"wait": percentile(waits, 50), "steps": max(waits) / step}


async def model_swap(server: Server, seed: str) -> Figures:
    """Requests in turn for two models of which only one may stay in memory: from the request to the first text."""
    ttfts = []
    async with new_connections() as session:
        # Each once first, so that both files are in the page cache.
        for model in server.models:
            await template_overhead(session, server.url, model)
        for swap in range(6):
            messages = unshared_chat(random.Random(f"{seed}/{swap}"), 16)
            body = chat_body(server.models[swap % 2], messages, 4)
            ttfts.append((await stream_chat(session, server.url, body)).ttft)
    return {"ttft_p50": percentile(ttfts, 50), "ttft_max": max(ttfts)}


async def embeddings(server: Server, seed: str) -> Figures:
    """64 texts of 64 tokens: in one request, and from 64 clients at once."""
    n_tokens, repeats = 64, 5
    async with new_connections() as session:
        await texts_per_second(session, server.url, server.model, [random_texts(seed, 8, n_tokens)], n_tokens)
        together, apart = [], []
        for repeat in range(repeats):
            texts = random_texts(f"{seed}/{repeat}", 128, n_tokens)
            one, many = [texts[:64]], [[text] for text in texts[64:]]
            together.append(await texts_per_second(session, server.url, server.model, one, n_tokens))
            apart.append(await texts_per_second(session, server.url, server.model, many, n_tokens))
    return {"together": percentile(together, 50), "apart": percentile(apart, 50)}


def _throughput_rows(at: Sequence[int]) -> tuple[Row, ...]:
    rows = []
    for clients in at:
        who = "1 client" if clients == 1 else f"{clients} clients"
        rows += [
            Row(figure=f"tokens_per_second_{clients}", title=f"{who}, aggregate", unit="tokens/s", target=1.0),
            Row(figure=f"ttft_p50_{clients}", title=f"{who}, TTFT p50", unit="s", target=1.0),
            Row(figure=f"ttft_p99_{clients}", title=f"{who}, TTFT p99", unit="s", target=1.0),
            Row(figure=f"gap_p99_{clients}", title=f"{who}, inter-token p99", unit="s"),
        ]
    return tuple(rows)


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="throughput",
            title="128-token prompts that share nothing, 64 tokens out",
            rows=_throughput_rows(CLIENTS),
            measure=throughput,
            any_server=True,
        ),
        Scenario(
            name="throughput-16",
            title="the same with 16 sequences at once",
            rows=_throughput_rows((16,)),
            measure=partial(throughput, at=(16,)),
            parallel=16,
            any_server=True,
        ),
        Scenario(
            name="shared-prompt",
            title="8 clients at once, the same 800-token system prompt, cold",
            rows=(
                Row(figure="ttft_max", title="worst TTFT", unit="s", target=0.30),
                Row(figure="tokens_per_second", title="aggregate", unit="tokens/s", target=2.5),
            ),
            measure=shared_prompt,
        ),
        Scenario(
            name="second-turn",
            title="second turn of 8 interleaved conversations of 300 tokens",
            rows=(
                Row(figure="ttft_p50", title="TTFT p50", unit="s", target=1.0),
                Row(figure="ttft_max", title="worst TTFT", unit="s", target=1.0),
            ),
            measure=second_turn,
        ),
        Scenario(
            name="long-prompt",
            title="a 4,000-token prompt arrives while 4 streams run",
            rows=(
                Row(figure="gap_max", title="the streams' worst gap", unit="s", target=0.5),
                Row(figure="ttft", title="the long prompt's TTFT", unit="s"),
            ),
            measure=long_prompt,
            n_ctx=6144,
        ),
        Scenario(
            name="cancelled-prompt",
            title="a 4,000-token prompt is cancelled in the middle, a short one takes its place",
            rows=(
                Row(figure="wait", title="median wait", unit="s", target=1.0),
                Row(figure="steps", title="longest wait", unit="steps", target=1.0, absolute=True),
            ),
            measure=cancelled_prompt,
            n_ctx=6144,
            parallel=1,
        ),
        Scenario(
            name="model-swap",
            title="two models that take turns in memory, request to first text (llama-server's router)",
            rows=(
                Row(figure="ttft_p50", title="TTFT p50", unit="s", target=0.6),
                Row(figure="ttft_max", title="worst TTFT", unit="s", target=0.6),
            ),
            measure=model_swap,
            n_models=2,
        ),
        Scenario(
            name="embeddings",
            title="64 texts of 64 tokens, BERT-type model",
            rows=(
                Row(figure="together", title="in one request", unit="texts/s", target=1.0),
                Row(figure="apart", title="64 clients at once", unit="texts/s", target=1.0),
            ),
            measure=embeddings,
            n_ctx=512,
            embeds=True,
        ),
    )
}
