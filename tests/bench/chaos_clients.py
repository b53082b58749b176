"""Clients of every temper, and what each of their requests came to."""

import asyncio
import http.client
import io
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.bench.prompts import unshared_chat

PATIENCE = 120.0
"""Seconds after which a request has come to no end."""
STALL_SECONDS = 6.0
"""How long a slow reader takes nothing: more than the daemon's [limits] stall_timeout."""

LMDS_OWN = re.compile(r'"code":\s*"internal_error"|Something went wrong inside lmd')
"""What an answer says where the failure is lmd's own: nothing that a client or the world does may lead to it."""

MODELS = ("model-a", "model-b", "model-c")
STEADY = "steady"
"""A preset that nobody spoils."""
SPOILED = tuple(f"spoiled-{n}" for n in range(4))
"""Presets that come, go and are wrong."""


class Fault(Exception):
    """A request was neither answered nor refused as it should be."""


@dataclass(slots=True)
class Tally:
    asked: Counter[str] = field(default_factory=Counter)
    """By the client's temper."""
    ended: Counter[str] = field(default_factory=Counter)
    """By what the request came to."""
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class World:
    port: int
    dice: random.Random
    interrupted: Callable[[float], bool]
    """Whether the daemon was down at any time since then (of the event loop's clock)."""


async def client(world: World, tally: Tally, until: float) -> None:
    """Ask one thing after the other until ``until``; every request's end is counted or is a fault."""
    now = asyncio.get_running_loop().time
    while now() < until:
        name = world.dice.choices(list(_TEMPERS), [weight for weight, _ in _TEMPERS.values()])[0]
        started = now()
        tally.asked[name] += 1
        try:
            async with asyncio.timeout(PATIENCE):
                ended = await _TEMPERS[name][1](world)
        except (ConnectionError, http.client.HTTPException, EOFError) as exc:
            if world.interrupted(started):
                ended = "lost with the daemon"
                await asyncio.sleep(0.1)
            else:
                ended = "fault"
                tally.faults.append(f"{name}: {exc!r} {now() - started:.1f} s after it was asked, with lmd up")
        except TimeoutError:
            ended = "fault"
            tally.faults.append(f"{name}: no end within {PATIENCE:g} s")
        except Fault as exc:
            ended = "fault"
            tally.faults.append(f"{name}: {exc}")
        tally.ended[ended] += 1
        await asyncio.sleep(world.dice.choice((0.0, 0.02, 0.1, 0.5)))


# ── on the wire ───────────────────────────────────────────────────────────────────────────────


def post(path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {len(raw)}"]
    lines += [
        f"{name}: {value}" for name, value in ({"Content-Type": "application/json"} | dict(headers or {})).items()
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


async def exchange(world: World, request: bytes, *, stall: float = 0.0) -> bytes:
    """All that comes back. ``stall``: seconds without reading after the first bytes. ConnectionError if it breaks."""
    sock = socket.socket()
    if stall:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(sock, ("127.0.0.1", world.port))
        with suppress(ConnectionError):  # refused before all of it was sent: the answer is there
            await loop.sock_sendall(sock, request)
        came = await loop.sock_recv(sock, 1 << 16)
        if came and stall:
            await asyncio.sleep(stall)
        while came and (piece := await loop.sock_recv(sock, 1 << 16)):
            came += piece
        return came
    finally:
        sock.close()


class _Came:
    """Bytes as http.client wants them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def parsed(came: bytes) -> tuple[int, str, str]:
    """Status, content type and text. HTTPException where it is cut off or no HTTP, EOFError where nothing came."""
    if not came:
        raise EOFError("nothing came back")
    response = http.client.HTTPResponse(_Came(came))  # type: ignore[arg-type]
    response.begin()
    text = response.read().decode()
    return response.status, response.headers.get_content_type(), text


def verdict(came: bytes) -> str:
    """What the answer to a request is. Fault where it is none that lmd should give."""
    status, kind, text = parsed(came)
    if LMDS_OWN.search(text):
        raise Fault(f"{status}: {text[-600:]}")
    if status != 200:
        _told(text, f"{status}")
        return "refused"
    if kind != "text/event-stream":
        json.loads(text)
        return "answered"
    last = text.rstrip().rsplit("\n\n", 1)[-1]
    if "[DONE]" in last or "message_stop" in last or "chat.end" in last:
        return "ended with an error" if '"error":' in text or "event: error" in text else "answered"
    data = [line for line in last.splitlines() if line.startswith("data:")]
    if not data:
        raise http.client.IncompleteRead(last.encode())
    _told(data[0].removeprefix("data:"), "a stream's last event")
    return "ended with an error"


def _told(text: str, what: str) -> None:
    """It is an error with words."""
    try:
        said = json.loads(text)
        error = said.get("error", said)
        if error["message"]:
            return
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise Fault(f"{what} is no error in lmd's shapes: {text[:400]!r}")


# ── tempers ───────────────────────────────────────────────────────────────────────────────────


def chat(world: World, **more: Any) -> dict[str, Any]:
    dice = world.dice
    name = dice.choices((dice.choice(MODELS), STEADY, dice.choice(SPOILED)), (6, 2, 1))[0]
    messages = unshared_chat(dice, dice.randint(4, 80))
    return {"model": name, "messages": messages, "max_tokens": dice.randint(1, 48), "ignore_eos": True, **more}


async def streamed(world: World) -> str:
    return verdict(await exchange(world, post("/v1/chat/completions", chat(world, stream=True))))


async def whole(world: World) -> str:
    return verdict(await exchange(world, post("/v1/chat/completions", chat(world, n=world.dice.choice((1, 1, 3))))))


async def messages(world: World) -> str:
    body = chat(world, stream=world.dice.random() < 0.5)
    body["messages"] = body["messages"][1:]
    del body["ignore_eos"]
    return verdict(await exchange(world, post("/v1/messages", body)))


async def conversation(world: World) -> str:
    """One that the daemon stores: it writes to the disk."""
    body = chat(world)
    said = {"model": body["model"], "input": body["messages"][1]["content"], "max_output_tokens": body["max_tokens"]}
    return verdict(await exchange(world, post("/api/v1/chat", said)))


async def structured(world: World) -> str:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    body = chat(world, response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}})
    del body["ignore_eos"]
    return verdict(await exchange(world, post("/v1/chat/completions", body)))


async def leaving(world: World) -> str:
    """Hang up at any time: while it sends, waits or reads."""
    body = chat(world, stream=world.dice.random() < 0.7, max_tokens=400)
    try:
        async with asyncio.timeout(world.dice.choice((0.0, 0.01, 0.1, 0.5, 2.0))):
            verdict(await exchange(world, post("/v1/chat/completions", body)))
    except TimeoutError:
        return "left by the client"
    return "answered"


async def slow_reader(world: World) -> str:
    """Take nothing of a long answer for a while. Being cut off is what it deserves."""
    more = {"stream": True, "max_tokens": 300, "n": 6, "logprobs": True, "top_logprobs": 20}
    try:
        return verdict(await exchange(world, post("/v1/chat/completions", chat(world, **more)), stall=STALL_SECONDS))
    except (ConnectionError, http.client.IncompleteRead):
        return "cut off for slowness"


async def slow_sender(world: World) -> str:
    """Promise more than is sent."""
    request = post("/v1/chat/completions", chat(world))
    return verdict(await exchange(world, request[: -world.dice.randint(1, 40)]))


async def huge(world: World) -> str:
    dice = world.dice
    match dice.randrange(6):
        case 0:
            request = post("/v1/chat/completions", chat(world, filler="x" * (3 << 20)))
        case 1:
            request = post(
                "/v1/chat/completions", chat(world, messages=[{"role": "user", "content": "word " * 300_000}])
            )
        case 2:
            request = post("/v1/chat/completions", b"[" * 1_000_000)
        case 3:
            request = post("/v1/chat/completions", chat(world, messages=[{"role": "user", "content": "x"}] * 30_000))
        case 4:
            request = post("/v1/chat/completions", chat(world), {"X-Long": "y" * 65_536})
        case _:
            request = post("/tokenize", {"model": dice.choice(MODELS), "content": "été " * 100_000})
    return verdict(await exchange(world, request))


_WRONG: tuple[Any, ...] = (None, True, -1, 2**64, 1e308, "", "\0", [], {}, [[]], {"a": 1}, "x" * 5000, [None])


async def malformed(world: World) -> str:
    """A body with wrong members, a torn body, or bytes that are no HTTP."""
    dice = world.dice
    body = chat(world, tools=[{"type": "function", "function": {"name": "f"}}], stop=["z"], top_p=0.5)
    del body["ignore_eos"]
    if dice.random() < 0.5:
        for key in dice.sample(sorted(body), dice.randint(1, 3)):
            body[key] = dice.choice(_WRONG)
        path = dice.choice(
            ("/v1/chat/completions", "/v1/messages", "/v1/completions", "/api/v1/chat", "/v1/embeddings")
        )
        return verdict(await exchange(world, post(path, body)))
    raw = bytearray(post("/v1/chat/completions", body))
    for _ in range(dice.randint(1, 20)):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    with suppress(TimeoutError, EOFError, ConnectionError):
        async with asyncio.timeout(PATIENCE / 2):
            return verdict(await exchange(world, bytes(raw)))
    return "closed without an answer"


Temper = Callable[[World], Awaitable[str]]
_TEMPERS: Mapping[str, tuple[int, Temper]] = {
    "streamed": (24, streamed),
    "whole": (14, whole),
    "messages": (6, messages),
    "conversation": (6, conversation),
    "structured": (4, structured),
    "leaving": (10, leaving),
    "slow reader": (3, slow_reader),
    "slow sender": (3, slow_sender),
    "huge": (5, huge),
    "malformed": (14, malformed),
}
