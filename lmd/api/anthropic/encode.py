"""`GenerationEvent` to Anthropic's messages: whole, and as the events of a stream."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import jiter
import msgspec

from lmd.api.anthropic.errors import error_event
from lmd.api.anthropic.shapes import AnthropicMessage, Block, MessageUsage, StopReason
from lmd.errors import LmdError
from lmd.generation import (
    Finished,
    FinishReason,
    GenerationEvent,
    PromptProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)

_STOP_REASONS: Mapping[FinishReason, StopReason] = {
    FinishReason.EOG: "end_turn",
    FinishReason.CANCELLED: "end_turn",
    FinishReason.STOP: "stop_sequence",
    FinishReason.LENGTH: "max_tokens",
    FinishReason.CONTEXT: "model_context_window_exceeded",
    FinishReason.TOOL_CALLS: "tool_use",
}

Kind = Literal["text", "thinking", "tool_use"]


def usage_object(usage: Usage) -> MessageUsage:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _signature(thinking: str) -> str:
    """Clients send thoughts back only with a signature. lmd trusts them without, so this one proves nothing."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


@dataclass(slots=True)
class _Open:
    """A block as far as it has come."""

    kind: Kind
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def block(self, *, show_thinking: bool) -> Block:
        if self.kind == "text":
            return {"type": "text", "text": self.text, "citations": None}
        if self.kind == "thinking":
            shown = self.text if show_thinking else ""
            return {"type": "thinking", "thinking": shown, "signature": _signature(self.text)}
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": _input(self.text)}

    def start(self) -> dict[str, Any]:
        """The block as its start shows it: empty."""
        if self.kind == "text":
            return {"type": "text", "text": "", "citations": None}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object; as much of it as was written, where the answer was cut off."""
    try:
        read = jiter.from_json(arguments.encode(), partial_mode=True)
    except ValueError:
        return {}
    return cast("dict[str, Any]", read) if isinstance(read, dict) else {}


class Answer:
    """One message. Feed it every event; then `whole`, or send what each gave and at last `closing`."""

    def __init__(self, model: str, *, show_thinking: bool = True) -> None:
        self._model = model
        self._id = f"msg_{uuid.uuid4().hex}"
        self._show_thinking = show_thinking
        self._blocks: list[_Open] = []
        self._is_open = False
        """The last of the blocks may go on."""
        self._started = False
        self._prompt_tokens = 0
        self._finished: Finished | None = None

    def feed(self, event: GenerationEvent) -> bytes:
        """The event as it goes out in a stream; b"" where nothing does."""
        match event:
            case PromptProgress():
                self._prompt_tokens = event.total
            case ReasoningDelta() if event.text:
                shown = {"type": "thinking_delta", "thinking": event.text} if self._show_thinking else None
                return self._piece("thinking", event.text, shown)
            case TextDelta() if event.text:
                return self._piece("text", event.text, {"type": "text_delta", "text": event.text})
            case ToolCallStart():
                return self._begin(_Open("tool_use", event.id, event.name))
            case ToolCallDelta():
                self._blocks[-1].pieces.append(event.arguments)
                return self._delta({"type": "input_json_delta", "partial_json": event.arguments})
            case ToolCallEnd():
                return self._end()
            case Finished():
                self._finished = event
        return b""

    # ── whole ──

    def whole(self) -> bytes:
        blocks = [block.block(show_thinking=self._show_thinking) for block in self._blocks]
        return msgspec.json.encode(self._message(blocks, self._finished))

    def _message(self, content: list[Block], finished: Finished | None) -> AnthropicMessage:
        usage = finished.usage if finished is not None else Usage(prompt_tokens=self._prompt_tokens)
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": None if finished is None else self._reason(finished),
            "stop_sequence": None if finished is None else finished.stop,
            "usage": usage_object(usage),
        }

    def _reason(self, finished: Finished) -> StopReason:
        return _STOP_REASONS[finished.reason]

    # ── stream ──

    def closing(self) -> bytes:
        """What comes after the last event."""
        finished = self._finished
        assert finished is not None
        delta = {"stop_reason": self._reason(finished), "stop_sequence": finished.stop}
        return (
            self._open()
            + self._end()
            + _event("message_delta", delta=delta, usage=usage_object(finished.usage))
            + _event("message_stop")
        )

    def failed(self, error: LmdError, status: int) -> bytes:
        return error_event(error, status)

    def _open(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return _event("message_start", message=self._message([], None)) + _event("ping")

    def _piece(self, kind: Kind, text: str, delta: dict[str, str] | None) -> bytes:
        told = b""
        if not self._is_open or self._blocks[-1].kind != kind:
            told = self._begin(_Open(kind))
        self._blocks[-1].pieces.append(text)
        return told if delta is None else told + self._delta(delta)

    def _begin(self, block: _Open) -> bytes:
        told = self._open() + self._end()
        self._blocks.append(block)
        self._is_open = True
        return told + _event("content_block_start", index=len(self._blocks) - 1, content_block=block.start())

    def _delta(self, delta: dict[str, str]) -> bytes:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _end(self) -> bytes:
        if not self._is_open:
            return b""
        self._is_open = False
        block, told = self._blocks[-1], b""
        if block.kind == "thinking":
            told = self._delta({"type": "signature_delta", "signature": _signature(block.text)})
        return told + _event("content_block_stop", index=len(self._blocks) - 1)


def _event(type: str, **data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (type.encode(), msgspec.json.encode({"type": type, **data}))
