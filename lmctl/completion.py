"""The pieces of a streamed /v1/chat/completions or /v1/completions answer, as lmctl shows them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec import MsgspecError, Struct, json

from lmctl.client import api_failure
from lmctl.errors import CommandError
from lmctl.streams import ServerEvent


@dataclass(frozen=True, slots=True)
class Waiting:
    """No token yet; ``note`` is the daemon's word for why."""

    note: str


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A piece of tool call number ``index``: its name comes first, its arguments' JSON text in pieces."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Ended:
    """``reason`` in OpenAI's words: stop, length, …"""

    reason: str


class Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


Piece = Waiting | Thought | Said | Called | Ended | Usage


class _Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct, frozen=True):
    index: int = 0
    function: _Function = _Function()


class _Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[_Call, ...] | None = None


class _Choice(Struct):
    delta: _Delta = _Delta()
    text: str = ""
    """A plain completion's."""
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None


def pieces(events: Iterable[ServerEvent]) -> Iterator[Piece]:
    """Ends at ``[DONE]``. `CommandError` for an error event, and for a stream that ends before it."""
    for event in events:
        if event.comment is not None:
            yield Waiting(event.comment)
        elif event.data == "[DONE]":
            return
        elif failure := api_failure(event.data):
            raise CommandError(failure.message, code=failure.code)
        else:
            yield from _of(event.data)
    raise CommandError(
        "The answer broke off: lmd closed the connection.",
        hint="See its journal: journalctl -u lmd -e",
        code="broken_off",
    )


def _of(data: str) -> Iterator[Piece]:
    try:
        chunk = json.decode(data, type=_Chunk)
    except MsgspecError as exc:
        raise CommandError(f"lmd sent a chunk that this lmctl does not understand: {exc}") from exc
    for choice in chunk.choices:
        if choice.delta.reasoning_content:
            yield Thought(choice.delta.reasoning_content)
        if choice.delta.content:
            yield Said(choice.delta.content)
        for call in choice.delta.tool_calls or ():
            yield Called(call.index, call.function.name or "", call.function.arguments or "")
        if choice.text:
            yield Said(choice.text)
        if choice.finish_reason:
            yield Ended(choice.finish_reason)
    if chunk.usage:
        yield chunk.usage
