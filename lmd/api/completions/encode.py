"""`GenerationEvent` to OpenAI's JSON: whole answers, and chunks of a stream.

A chunk is constant but for its delta, so the constant bytes are made once for a stream and choice, and
each token costs the encoding of its own text.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from lmd.api.completions.errors import error_event
from lmd.errors import LmdError
from lmd.generation import (
    Finished,
    FinishReason,
    GenerationEvent,
    LoadDone,
    LoadProgress,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStart,
    Usage,
    total_usage,
)
from lmd.version import VERSION

DONE = b"data: [DONE]\n\n"

Extras = Callable[[Usage, FinishReason], Mapping[str, Any]]
"""Further top-level fields of an answer, from the usage of all choices and why the first one ended."""

_json = msgspec.json.encode

_FINISH_REASONS: Mapping[FinishReason, str] = {
    FinishReason.EOG: "stop",
    FinishReason.STOP: "stop",
    FinishReason.CANCELLED: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
}


def usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.rejected_draft_tokens,
        },
    }


def _text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            "token": _text_of(one.data),
            "logprob": one.logprob,
            "bytes": list(one.data),
            "top_logprobs": [
                {"token": _text_of(data), "logprob": logprob, "bytes": list(data)} for _, data, logprob in one.top
            ],
        }
        for one in logprobs
    ]


def completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The older shape of plain completions: parallel lists. ``offset``: characters of the text before.

    The first token of an echoed prompt has no probability: null, as with OpenAI.
    """
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(_text_of(one.data))
    return {
        "tokens": [_text_of(one.data) for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [
            None if one.logprob is None else {_text_of(data): logprob for _, data, logprob in one.top}
            for one in logprobs
        ],
        "text_offset": offsets,
    }


class Choice:
    """What one choice came to, put together from its events."""

    __slots__ = ("_arguments", "_calls", "_reasoning", "_text", "logprobs", "reason", "usage")

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallStart] = []
        self._arguments: list[list[str]] = []
        self.logprobs: list[TokenLogprob] = []
        self.reason = FinishReason.EOG
        self.usage = Usage()

    def add(self, event: GenerationEvent) -> None:
        match event:
            case TextDelta():
                self._text.append(event.text)
                self.logprobs.extend(event.logprobs)
            case ReasoningDelta():
                self._reasoning.append(event.text)
            case ToolCallStart():
                self._calls.append(event)
                self._arguments.append([])
            case ToolCallDelta():
                self._arguments[event.index].append(event.arguments)
            case Finished():
                self.reason = event.reason
                self.usage = event.usage

    @property
    def text(self) -> str:
        return "".join(self._text)

    def message(self) -> dict[str, Any]:
        calls = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(arguments)}}
            for call, arguments in zip(self._calls, self._arguments, strict=True)
        ]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not self.text else self.text}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if calls:
            message["tool_calls"] = calls
        return message


class Answer:
    """One request's answer: its id, its time, its choices, and both ways to write it."""

    def __init__(
        self,
        *,
        chat: bool,
        model: str,
        prompts: int,
        n: int,
        logprobs: bool = False,
        include_usage: bool = False,
        extras: Extras | None = None,
    ) -> None:
        choices = prompts * n
        self._per_prompt = n
        self._chat = chat
        self._logprobs = logprobs
        self._choices = [Choice() for _ in range(choices)]
        self._include_usage = include_usage
        self._extras = extras
        self._running = choices
        self._opened = False
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"lmd-{VERSION}",
        }
        chunk_head = {**self._head, "object": "chat.completion.chunk" if chat else "text_completion"}
        # With include_usage every chunk says "usage": null but the last, which has no choices.
        self._chunk_head = _json(chunk_head)[:-1]
        self._chunk_tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        before = b"data: " + self._chunk_head + b',"choices":[{"index":'
        field = b',"delta":{"content":' if chat else b',"text":'
        self._text_before = [before + str(index).encode() + field for index in range(choices)]
        close = b"}" if chat else b""
        self._text_after = close + b',"logprobs":null,"finish_reason":null}]' + self._chunk_tail
        self._offsets = [0] * choices

    def add(self, event: GenerationEvent) -> None:
        """Note an event for the whole answer."""
        if not isinstance(event, LoadProgress | LoadDone):
            self._choices[event.choice].add(event)

    def usage(self) -> Usage:
        """Of all choices. Those of one prompt share it, so it counts once for them."""
        groups = [
            total_usage([choice.usage for choice in self._choices[at : at + self._per_prompt]])
            for at in range(0, len(self._choices), self._per_prompt)
        ]
        return replace(
            total_usage(groups),
            prompt_tokens=sum(usage.prompt_tokens for usage in groups),
            cached_tokens=sum(usage.cached_tokens for usage in groups),
        )

    # ── whole ──

    def whole(self) -> bytes:
        choices = [self._choice(index) for index in range(len(self._choices))]
        return _json({**self._head, "choices": choices, "usage": usage_object(self.usage()), **self._more()})

    def _more(self) -> Mapping[str, Any]:
        return {} if self._extras is None else self._extras(self.usage(), self._choices[0].reason)

    def _choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        reason = _FINISH_REASONS[choice.reason]
        if self._chat:
            logprobs = {"content": chat_logprobs(choice.logprobs)} if self._logprobs else None
            return {"index": index, "message": choice.message(), "logprobs": logprobs, "finish_reason": reason}
        logprobs = completion_logprobs(choice.logprobs, 0) if self._logprobs else None
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": reason}

    # ── stream ──

    def feed(self, event: GenerationEvent) -> bytes:
        """The event as it goes out; b"" where OpenAI's clients have no use for it."""
        data = self._event(event)
        return self._open() + data if data and not self._opened else data

    def _open(self) -> bytes:
        """A chat's first chunk of each choice: its role."""
        if self._opened:
            return b""
        self._opened = True
        if not self._chat:
            return b""
        return b"".join(
            self._chunk(index, {"role": "assistant", "content": ""}, None) for index in range(len(self._choices))
        )

    def _event(self, event: GenerationEvent) -> bytes:
        if isinstance(event, TextDelta):
            if not self._logprobs:
                return self._text_before[event.choice] + _json(event.text) + self._text_after
            return self._text_with_logprobs(event)
        if isinstance(event, Finished):
            self._choices[event.choice].add(event)  # its usage is needed at the end
            self._running -= 1
            last = not self._running and not self._include_usage
            return self._chunk(event.choice, {}, _FINISH_REASONS[event.reason], more=self._more() if last else None)
        if not self._chat or isinstance(event, LoadProgress | LoadDone):
            return b""
        choice = event.choice
        match event:
            case ReasoningDelta():
                return self._chunk(choice, {"reasoning_content": event.text}, None)
            case ToolCallStart():
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.index, "id": event.id, "type": "function", "function": function}
                return self._chunk(choice, {"tool_calls": [call]}, None)
            case ToolCallDelta():
                call = {"index": event.index, "function": {"arguments": event.arguments}}
                return self._chunk(choice, {"tool_calls": [call]}, None)
        return b""

    def _text_with_logprobs(self, event: TextDelta) -> bytes:
        choice = event.choice
        if self._chat:
            return self._chunk(choice, {"content": event.text}, None, {"content": chat_logprobs(event.logprobs)})
        logprobs = completion_logprobs(event.logprobs, self._offsets[choice])
        self._offsets[choice] += len(event.text)
        return self._chunk(choice, event.text, None, logprobs)

    def _chunk(
        self,
        index: int,
        delta: Any,
        reason: str | None,
        logprobs: Any = None,
        more: Mapping[str, Any] | None = None,
    ) -> bytes:
        said = {"delta": delta} if self._chat else {"text": delta or ""}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": reason}
        tail = _tail(more) + self._chunk_tail if more else self._chunk_tail
        return b"data: " + self._chunk_head + b',"choices":[' + _json(choice) + b"]" + tail

    def closing(self) -> bytes:
        """What comes after every choice has ended."""
        opening = self._open()
        if not self._include_usage:
            return opening + DONE
        usage = _json(usage_object(self.usage()))
        more = _tail(self._more())
        return opening + b"data: " + self._chunk_head + b',"choices":[],"usage":' + usage + more + b"}\n\n" + DONE

    def failed(self, error: LmdError, status: int) -> bytes:
        return error_event(error, status)


def _tail(more: Mapping[str, Any]) -> bytes:
    """Fields to stand behind others in an object."""
    return b"," + _json(more)[1:-1] if more else b""
