"""How fast a model reads and writes, measured from outside: through the daemon, as its clients see it."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from msgspec import Struct

from lmctl.client import Client
from lmctl.completion import Waiting, pieces
from lmctl.conversation import Answer
from lmctl.errors import CommandError

_WARM_UP_TOKENS = 8


class Run(Struct):
    """Several requests sent at one moment. Times are seconds from then, rates tokens per second.

    A rate is None where what it counts arrived all at once, as it does when few tokens reach a busy machine.
    """

    streams: int
    prompt_tokens: int
    """Of all streams."""
    completion_tokens: int
    prompt_tps: float | None
    """All prompts' tokens over the time until the last stream had its first token."""
    decode_tps: float | None
    """Of all streams together, from the first token of any to the last of all."""
    stream_tps: float | None
    """Of one stream after its first token, on average."""
    ttft_mean: float
    ttft_max: float
    seconds: float


class _Tokens(Struct):
    tokens: list[int]


class _Content(Struct):
    model: str
    content: str


def warm_up(client: Client, model: str, waiting: Callable[[str], None]) -> None:
    """Load the model if need be, and let it compute once: first steps also allocate."""
    body = _body(model, "The first words", _WARM_UP_TOKENS)
    with closing(client.server_events("/v1/completions", body)) as events:
        for piece in pieces(events):
            if isinstance(piece, Waiting):
                waiting(piece.note)


def prompts(client: Client, model: str, n_tokens: int, count: int) -> list[list[int]]:
    """``count`` prompts of exactly ``n_tokens`` of the model's own tokens, no two with a common beginning."""
    words = random.Random(0)  # the same for every run: what is compared has read the same
    text = " ".join("".join(words.choices("abcdefghijklmnopqrstuvwxyz", k=words.randint(2, 9))) for _ in range(512))
    tokens = client.post("/tokenize", _Content(model, text), _Tokens).tokens
    return [random.Random(f"prompt {i}").choices(tokens, k=n_tokens) for i in range(count)]


def measure(client: Client, model: str, asked: Sequence[list[int]], max_tokens: int) -> Run:
    """Ask all at once, each on a connection of its own; the first that fails is raised once all have ended."""
    answers = [Answer() for _ in asked]
    ended = [0.0] * len(asked)
    failures: list[CommandError] = []
    ready = threading.Barrier(len(asked) + 1)

    def ask(index: int) -> None:
        body = _body(model, asked[index], max_tokens)
        ready.wait()
        start = time.monotonic()
        try:
            with closing(client.server_events("/v1/completions", body)) as events:
                for piece in pieces(events):
                    answers[index].add(piece, time.monotonic() - start)
        except CommandError as error:
            failures.append(error)
        ended[index] = time.monotonic() - start

    # Daemons: Ctrl-C ends the program, and with it their connections and what the model computes for them.
    threads = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    ready.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return figures(answers, max(ended))


def figures(answers: Sequence[Answer], seconds: float) -> Run:
    """What the answers, all asked at one moment, come to."""
    firsts = [answer.first for answer in answers if answer.first is not None]
    usages = [answer.usage for answer in answers if answer.usage is not None]
    if len(firsts) < len(answers) or len(usages) < len(answers):
        raise CommandError("The model gave no text to measure.", hint="Does it answer? lmctl chat MODEL -p Hello")
    read = sum(usage.prompt_tokens for usage in usages)
    written = sum(usage.completion_tokens for usage in usages)
    spell = max(answer.last for answer in answers) - min(firsts)
    rates = [rate for answer in answers if (rate := answer.tokens_per_second) is not None]
    return Run(
        streams=len(answers),
        prompt_tokens=read,
        completion_tokens=written,
        prompt_tps=read / max(firsts) if max(firsts) > 0 else None,
        decode_tps=(written - len(answers)) / spell if spell > 0 else None,
        stream_tps=sum(rates) / len(rates) if rates else None,
        ttft_mean=sum(firsts) / len(firsts),
        ttft_max=max(firsts),
        seconds=seconds,
    )


def _body(model: str, prompt: str | list[int], max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
