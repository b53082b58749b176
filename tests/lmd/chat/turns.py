"""Assistant turns rendered by a template and read back by its format's parser."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from lmd.chat.default_tools import described
from lmd.chat.dialogue import Dialogue
from lmd.chat.formats import Format
from lmd.chat.markers import common_prefix
from lmd.chat.parser import ChatParser
from lmd.chat.sink import ChatEvent
from lmd.generation import (
    ChatPrompt,
    Message,
    ReasoningDelta,
    Role,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

NOW = datetime(2026, 1, 1)
EOS = "<EOS>"
REASONING = "Wait: {x}?\n\nYes."
TEXT = 'Sure, "ja".\nZweite Zeile → ok.'
ARGUMENTS: dict[str, Any] = {
    "city": 'Köln "q" it\'s\nline 2 日本',
    "n": 1,
    "o": {"a": [1, True], "b": {"c": "x"}},
    "flag": False,
    "x": 1.5,
    "l": ["a", "b c"],
}
TOOLS = (
    Tool(
        name="get_weather",
        description="The weather.",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "n": {"type": "integer"},
                "o": {
                    "type": "object",
                    "properties": {
                        "a": {"type": "array", "items": {}},
                        "b": {"type": "object", "properties": {"c": {"type": "string"}}},
                    },
                },
                "flag": {"type": "boolean"},
                "x": {"type": "number"},
                "l": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    ),
    Tool(name="now", description="The time."),
)
CALLS = (
    ToolCall(id="call00001", name="get_weather", arguments=json.dumps(ARGUMENTS, ensure_ascii=False)),
    ToolCall(id="call00002", name="now", arguments="{}"),
)
USER = Message(role=Role.USER, parts=(TextPart("Hi"),))


@dataclass(frozen=True)
class Read:
    """What a parser gave, events of one kind joined. ``calls``: id, name, arguments, ended."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[tuple[str, str, bool], ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, str, list[tuple[str, Any, bool]]]:
        return self.reasoning, self.text, [(name, json.loads(text), ended) for name, text, ended in self.calls]


def joined(events: Iterable[ChatEvent]) -> Read:
    reasoning = text = ""
    calls: dict[int, tuple[str, str, bool]] = {}
    ids = []
    for event in events:
        match event:
            case ReasoningDelta(piece):
                reasoning += piece
            case TextDelta(piece):
                text += piece
            case ToolCallStart(index, id_, name):
                assert index not in calls, "a call begins once"
                assert index == len(calls), "indices count from 0"
                assert name, "a name is never empty"
                calls[index] = (name, "", False)
                ids.append(id_)
            case ToolCallDelta(index, piece):
                name, so_far, ended = calls[index]
                assert not ended
                calls[index] = (name, so_far + piece, False)
            case ToolCallEnd(index):
                name, so_far, _ = calls[index]
                calls[index] = (name, so_far, True)
    assert len(set(ids)) == len(ids), "ids are unique"
    return Read(reasoning, text, tuple(calls.values()), tuple(ids))


def read(parser: ChatParser, pieces: Iterable[str]) -> Read:
    events: list[ChatEvent] = []
    for piece in pieces:
        events += parser.feed(piece, [(len(piece), 1)])
    return joined([*events, *parser.flush()])


def without_ids(got: Read) -> Read:
    return replace(got, ids=())


def two_way_splits(text: str) -> Iterable[Sequence[str]]:
    return ([text[:i], text[i:]] for i in range(1, len(text)))


def random_split(text: str, rng: random.Random) -> list[str]:
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@dataclass(frozen=True)
class Part:
    """The assistant's part of a rendered conversation, and the parser that reads it."""

    text: str
    format: Format
    reasoning_open: bool

    def parser(self, *, constrained: bool = False, tools: Sequence[Tool] = TOOLS) -> ChatParser:
        return ChatParser(
            self.format,
            tools=tools,
            reasoning_open=self.reasoning_open,
            constrained=constrained,
            prefill=self.format.prefill,
        )

    def shows(self, message: Message) -> str:
        """``R`` reasoning, ``T`` text and the number of calls that the rendering really holds."""
        reasoning = "R" if message.reasoning and message.reasoning in self.text else "-"
        text = "T" if message.text and message.text in self.text else "-"
        return f"{reasoning}{text}{sum(call.name in self.text for call in message.tool_calls)}"


class Rendering:
    """One model's templates, with and without an assistant's turn."""

    def __init__(self, source: str, *, followed: bool = False) -> None:
        self._voice = Dialogue.of({"chat_template": source})._tools
        self._followed = followed
        self.format = self._voice.spoken

    def _render(self, messages: tuple[Message, ...], *, generation_prompt: bool) -> str:
        voice, shape = self._voice, self._voice.template.shape
        prompt = described(
            ChatPrompt(messages=messages, tools=TOOLS),
            self.format,
            tools=shape.tools and voice.native,
            calls=bool(shape.calls) and voice.native,
            results=True,
        )
        return voice.template.render(
            prompt,
            eos=EOS,
            now=NOW,
            reasoning="on" if shape.thinking_on else None,
            add_generation_prompt=generation_prompt,
        ).text

    def part(self, message: Message) -> Part:
        """Cut at the turn's end, as generation stops there. TemplateError where the template refuses."""
        format_ = self.format
        base = self._render((USER,), generation_prompt=False)
        prompt = self._render((USER,), generation_prompt=True)
        tail = (Message(role=Role.USER, parts=(TextPart("Danke"),)),) if self._followed else ()
        full = self._render((USER, message, *tail), generation_prompt=False)
        before = self._before(base, prompt, full)
        text = full[len(before) :]
        ends = [at for stop in (*format_.stops, EOS) if (at := text.find(stop)) >= 0]
        text = text[: min(ends, default=len(text))].rstrip("\n")
        shown = bool(message.reasoning) and str(message.reasoning) in text
        # A template may show a block's end without its start, which only the generation prompt writes.
        unopened = shown and not format_.header and format_.reasoning_start not in text
        return Part(text, format_, format_.opens_reasoning(before) or unopened)

    def _before(self, base: str, prompt: str, full: str) -> str:
        """The prompt as far as the turn shares it: a reasoning block that it opens may be missing there."""
        format_ = self.format
        candidates = [prompt]
        opened = prompt[common_prefix(base, prompt) :]
        markers = [marker for marker in (format_.reasoning_start, format_.reasoning_end) if marker and marker in opened]
        candidates += [prompt[: prompt.rindex(marker)] for marker in markers]
        if format_.reasoning_start and format_.reasoning_start in opened:
            candidates.append(prompt[: len(prompt) - len(opened) + opened.index(format_.reasoning_start)])
        for candidate in sorted(candidates, key=len, reverse=True):
            for before in (candidate, candidate.rstrip()):
                if full.startswith(before):
                    return before
        shared = full[: common_prefix(prompt, full)]
        # The generation prompt may stand after more text than the turn has before it.
        header = next((prompt[-k:] for k in range(200, 0, -1) if full[len(shared) :].startswith(prompt[-k:])), "")
        return shared + header


def message(*, reasoning: bool = False, text: bool = False, calls: int = 0) -> Message:
    return Message(
        role=Role.ASSISTANT,
        parts=(TextPart(TEXT),) if text else (),
        reasoning=REASONING if reasoning else None,
        tool_calls=CALLS[:calls],
    )
