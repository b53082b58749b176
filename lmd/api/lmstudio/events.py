"""`GenerationEvent` to v1's answer, and to the named events of its stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from lmd.api.lmstudio.errors import error_object
from lmd.api.lmstudio.shapes import ChatResult, ChatStats, OutputItem
from lmd.errors import LmdError
from lmd.generation import (
    Finished,
    GenerationEvent,
    LoadDone,
    LoadProgress,
    Message,
    PromptProgress,
    ReasoningDelta,
    Role,
    TextDelta,
    TextPart,
    Usage,
)

Section = Literal["reasoning", "message"]


class Transcript:
    """An answer as far as it has come."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self._items: list[tuple[Section, list[str]]] = []
        self._usage = Usage()
        self._load_seconds = 0.0

    def add(self, event: GenerationEvent) -> None:
        match event:
            case LoadDone():
                self.instance, self._load_seconds = event.instance, event.seconds
            case ReasoningDelta():
                self._append("reasoning", event.text)
            case TextDelta():
                self._append("message", event.text)
            case Finished():
                self._usage = event.usage

    def _append(self, section: Section, text: str) -> None:
        if not text:
            return
        if not self._items or self._items[-1][0] != section:
            self._items.append((section, []))
        self._items[-1][1].append(text)

    def result(self) -> ChatResult:
        usage = self._usage
        output: list[OutputItem] = [{"type": section, "content": "".join(texts)} for section, texts in self._items]
        stats: ChatStats = {
            "input_tokens": usage.prompt_tokens,
            "total_output_tokens": usage.completion_tokens,
            "reasoning_output_tokens": usage.reasoning_tokens,
            "tokens_per_second": usage.tokens_per_second,
            "time_to_first_token_seconds": usage.queue_seconds + usage.prompt_seconds,
        }
        if self._load_seconds > 0:
            stats["model_load_time_seconds"] = self._load_seconds
        return {"model_instance_id": self.instance, "output": output, "stats": stats}

    def message(self) -> Message:
        """The answer as a part of the conversation."""

        def joined(wanted: Section) -> str:
            return "".join("".join(texts) for section, texts in self._items if section == wanted)

        return Message(role=Role.ASSISTANT, parts=(TextPart(joined("message")),), reasoning=joined("reasoning") or None)


class Stream:
    """The events of one streamed chat, in LM Studio's order. What it is fed also goes into the transcript.

    ``chat.start`` waits for the first thing to tell, so that a request that is refused at once has a plain status.
    """

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript
        self._loading = False
        self._prompt: Literal["waiting", "processing", "done"] = "waiting"
        self._section: Section | None = None
        self._opened = False
        self.result: ChatResult | None = None
        """What is told at the end, where that is more than the transcript's own."""

    def feed(self, event: GenerationEvent) -> bytes:
        """The event as it goes out; b"" where there is nothing to tell."""
        self._transcript.add(event)
        match event:
            case LoadProgress():
                return self._open() + self._start_loading() + self._load("progress", progress=event.fraction)
            case LoadDone():
                if event.seconds <= 0:
                    return b""
                return self._open() + self._start_loading() + self._load("end", load_time_seconds=event.seconds)
            case PromptProgress():
                done = event.done / event.total if event.total else 1.0
                told = self._open() + self._start_prompt() + _event("prompt_processing.progress", progress=done)
                return told + (self._end_prompt() if event.done >= event.total else b"")
            case ReasoningDelta() if event.text:
                return self._piece("reasoning", event.text)
            case TextDelta() if event.text:
                return self._piece("message", event.text)
            case Finished():
                return self._open() + self._end_prompt() + self._end_section()
        return b""

    def closing(self) -> bytes:
        return self._open() + _event("chat.end", result=self.result or self._transcript.result())

    def failed(self, error: LmdError, status: int) -> bytes:
        told = self._open() + self._end_section() + _event("error", **error_object(error, status))
        return told + self.closing()

    # ── what goes before ──

    def _open(self) -> bytes:
        if self._opened:
            return b""
        self._opened = True
        return _event("chat.start", model_instance_id=self._transcript.instance)

    def _start_loading(self) -> bytes:
        if self._loading:
            return b""
        self._loading = True
        return self._load("start")

    def _load(self, what: str, **more: float) -> bytes:
        return _event(f"model_load.{what}", model_instance_id=self._transcript.instance, **more)

    def _start_prompt(self) -> bytes:
        if self._prompt != "waiting":
            return b""
        self._prompt = "processing"
        return _event("prompt_processing.start")

    def _end_prompt(self) -> bytes:
        if self._prompt == "done":
            return b""
        started = self._start_prompt()
        self._prompt = "done"
        return started + _event("prompt_processing.end")

    def _piece(self, section: Section, text: str) -> bytes:
        told = self._open() + self._end_prompt()
        if self._section != section:
            told += self._end_section() + _event(f"{section}.start")
            self._section = section
        return told + _event(f"{section}.delta", content=text)

    def _end_section(self) -> bytes:
        if self._section is None:
            return b""
        section, self._section = self._section, None
        return _event(f"{section}.end")


def _event(type: str, **data: Any) -> bytes:
    body: Mapping[str, Any] = {"type": type, **data}
    return b"event: %s\ndata: %s\n\n" % (type.encode(), msgspec.json.encode(body))
