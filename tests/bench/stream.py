"""One streamed chat completion, as a client sees it: when each piece of text came, and what the server counted."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp


class RequestFailed(Exception):
    """The server refused the request, broke the stream, or sent an error in it. Says what came back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Times are `time.perf_counter` seconds. ``pieces``: when each chunk that carried text arrived."""

    sent: float
    pieces: tuple[float, ...]
    ended: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    text: str

    @property
    def ttft(self) -> float:
        """Seconds from sending the request (connecting included) to the first text."""
        return self.pieces[0] - self.sent

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between one piece of text and the next."""
        return tuple(later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False))


@dataclass(slots=True)
class ChatStream:
    """Collects the events of one stream. Feed it every SSE data payload in order."""

    text: str = ""
    pieces: list[float] = field(default_factory=list)
    """When each payload that carried text came."""
    usage: Mapping[str, Any] | None = None
    reason: str | None = None
    done: bool = False

    def feed(self, payload: str | bytes, now: float) -> None:
        """Take one ``data:`` payload that came at ``now``. RequestFailed where it is an error."""
        if payload in {"[DONE]", b"[DONE]"}:
            self.done = True
            return
        chunk = json.loads(payload)
        if chunk.get("error"):
            raise RequestFailed(f"error in the stream: {chunk['error']}")
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        choice = chunk["choices"][0] if chunk.get("choices") else {}
        self.reason = choice.get("finish_reason") or self.reason
        delta = choice.get("delta", {})
        piece = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
        self.text += piece
        if piece:
            self.pieces.append(now)


def chat_body(
    model: str, messages: Sequence[Mapping[str, Any]], max_tokens: int, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of a streamed request that always makes exactly ``max_tokens`` tokens, greedily."""
    return {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **(extra or {}),
    }


async def stream_chat(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], *, tells_usage: bool = True
) -> Timeline:
    """Send ``body`` to ``url``/v1/chat/completions and read the stream to its end.

    RequestFailed where the server refuses it, or where the stream breaks or is not whole. Of a server that does not
    tell a stream's usage ``max_tokens`` are counted where the answer ended there, else its pieces, and no prompt.
    """
    stream = ChatStream()
    sent = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                raise RequestFailed(f"{response.status}: {(await response.text())[:500]}")
            async for line in response.content:
                if line.startswith(b"data:"):
                    stream.feed(line[5:].strip(), time.perf_counter())
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise RequestFailed(f"the connection broke after {len(stream.pieces)} pieces of text: {exc!r}") from exc
    if not tells_usage:
        n = body["max_tokens"] if stream.reason == "length" else len(stream.pieces)
        stream.usage = {"prompt_tokens": 0, "completion_tokens": n}
    if not (stream.done and stream.usage and stream.pieces):
        raise RequestFailed(
            f"the stream ended with {len(stream.pieces)} pieces of text, usage {stream.usage}, [DONE] {stream.done}"
        )
    return Timeline(
        sent=sent,
        pieces=tuple(stream.pieces),
        ended=time.perf_counter(),
        prompt_tokens=stream.usage["prompt_tokens"],
        cached_tokens=(stream.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        completion_tokens=stream.usage["completion_tokens"],
        text=stream.text,
    )


def new_connections(timeout: float = 600) -> aiohttp.ClientSession:
    """A session that opens a connection for each request: llama-server drops kept-alive ones after a stream."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=aiohttp.ClientTimeout(total=timeout)
    )
