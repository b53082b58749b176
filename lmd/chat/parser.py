"""What a model wrote, told apart while it streams: reasoning, text, tool calls."""

import re
from collections.abc import Generator, Sequence

from lmd.chat.calls import CallReader
from lmd.chat.formats import Format, Style
from lmd.chat.json_calls import JsonReader, NameJsonReader
from lmd.chat.literals import BracesReader, ElementsReader, PythonicReader
from lmd.chat.sink import CallSink, ChatEvent
from lmd.chat.stream import Malformed, TextStream, beginning_of, first_of, held_back
from lmd.chat.tagged import TaggedReader
from lmd.generation import ReasoningDelta, TextDelta, Tool, ToolCallDelta

_READERS: dict[Style, type[CallReader]] = {
    Style.JSON: JsonReader,
    Style.NAME_JSON: NameJsonReader,
    Style.TAGGED: TaggedReader,
    Style.PYTHONIC: PythonicReader,
    Style.BRACES: BracesReader,
    Style.ELEMENTS: ElementsReader,
    Style.CHANNELS: NameJsonReader,
}


class ChatParser:
    """Feed it the answer's text as it is generated; one for each choice.

    The events joined do not depend on how the text was cut. ``tools``: the tools offered; without any, calls are not
    looked for and text that looks like one stays text. ``reasoning_open``: the prompt ended inside a reasoning block.
    ``inline_reasoning``: the block stays in the text, markers included. ``constrained``: a grammar holds the calls to
    their schemas, so arguments are given out as they come; else each call is given out once it is whole, and
    one that turns out malformed is given back as text. A constrained call that ends early (length) has no ToolCallEnd.
    ``prefill`` is the end of the prompt that belongs to the answer's markers.
    """

    def __init__(
        self,
        format_: Format,
        *,
        tools: Sequence[Tool] = (),
        reasoning_open: bool = False,
        inline_reasoning: bool = False,
        constrained: bool = False,
        prefill: str = "",
        choice: int = 0,
    ) -> None:
        self._format = format_
        self._inline = inline_reasoning
        self._choice = choice
        self._stream = TextStream()
        self._events: list[ChatEvent] = []
        self._sink = CallSink(format_, tools, self._events, choice, streaming=constrained)
        reader = _READERS.get(format_.style) if tools else None
        self._calls = reader(format_, self._stream, self._sink) if reader is not None else None
        self._in_reasoning = reasoning_open and format_.reasoning
        self._opened = self._in_reasoning
        self._flushed = False
        self._within: tuple[re.Pattern[str], bool] | None = None
        """Set while `_text` waits in the middle of a text of which nothing is held back: what its markers begin with,
        and whether it is reasoning."""
        self._gap = ""
        """The blanks dropped before the last marker: they come back with it if it was none."""
        self.reasoning_tokens = 0
        self._run = self._answer()
        next(self._run)
        if prefill:
            self._advance(prefill)

    @property
    def calls(self) -> int:
        """Tool calls begun so far."""
        return self._sink.count

    @property
    def in_reasoning(self) -> bool:
        return self._in_reasoning

    def feed(self, text: str, steps: Sequence[tuple[int, int]] = ()) -> list[ChatEvent]:
        """More of the answer. ``steps``: it came in pieces that long, of so many tokens each.

        Tokens are reasoning when their piece came inside the block.
        """
        if self._within is not None and text and not self._events:
            beginning, reasoning = self._within
            if beginning.search(text) is None and not text[-1].isspace():
                # Most tokens come here: `_text` would write them as they are, at four times the cost.
                if reasoning:
                    self.reasoning_tokens += sum(n_tokens for _, n_tokens in steps)
                return [self._delta(text, reasoning)]
        at = 0
        for size, n_tokens in steps:
            if self._in_reasoning:
                self.reasoning_tokens += n_tokens
            if size:
                self._advance(text[at : at + size])
            at += size
        if at < len(text):
            self._advance(text[at:])
        return self._taken()

    def flush(self) -> list[ChatEvent]:
        """The answer is over: what was held back. Any later call gives nothing."""
        if not self._flushed:
            self._flushed = True
            self._stream.closed = True
            self._advance("")
        return self._taken()

    def _advance(self, text: str) -> None:
        self._stream.append(text)
        try:
            self._run.send(None)
        except StopIteration:
            return

    def _taken(self) -> list[ChatEvent]:
        n = self._sink.committed
        taken = self._events[:n]
        if n > 1:
            taken = _merged(taken)
        del self._events[:n]
        self._sink.taken(n)
        return taken

    # ── the grammar ───────────────────────────────────────────────────────────────────────────

    def _answer(self) -> Generator[None, None, None]:
        yield
        format_ = self._format
        if format_.header is not None:
            yield from self._channels(*format_.header)
        fresh = True
        """Nothing but blanks and markers so far: here a reasoning block may open, and a bare call."""
        trim = bool(format_.text_start) or self._opened
        if self._opened:
            yield from self._reasoning(opened=True)
            trim = not self._inline
        while True:
            if fresh and (yield from self._at_start(trim)):
                trim = True
                continue
            marker, wrote = None, False
            if fresh and format_.reasoning_end:
                marker = yield from self._leading((format_.reasoning_start.strip(), format_.reasoning_end.strip()))
            if marker is None:
                marker, wrote = yield from self._text(self._markers(), trim, reasoning=False)
            fresh = fresh and not wrote
            if marker is None:
                return
            trim = True
            if marker == format_.reasoning_end.strip() and fresh and marker not in self._openings():
                continue
            if marker == format_.reasoning_start.strip() and fresh and marker not in self._openings():
                yield from self._reasoning(opened=False)
                trim = not self._inline
            elif marker in self._openings():
                called = yield from self._call(marker, reasoning=False)
                fresh = called
                trim = called
            # Anything else is a wrapper, and no part of the text.

    def _channels(self, begin: str, end: str) -> Generator[None, None, None]:
        """Messages with headers, until something stands where a header should: from there on it is text."""
        format_, stream = self._format, self._stream
        ends = (*format_.message_ends, begin)
        first = bool(format_.prefill)
        while (yield from stream.blanks()):
            stream.keep = stream.pos
            after_role = 0
            try:
                if not (yield from stream.take(begin)) or not (yield from stream.take("assistant")):
                    raise Malformed
                after_role = stream.pos - (stream.keep or 0)
                if (yield from stream.peek()) not in {" ", "<"}:
                    raise Malformed
                header, _ = yield from stream.until([end], 400)
            except Malformed:
                # What the prompt already held is no part of the answer.
                stream.pos = stream.keep + (after_role if first else 0)
                stream.keep = None
                return
            stream.keep = None
            first = False
            name = header.partition(format_.recipient)[2].split("<")[0].split() if format_.recipient else []
            if name and self._calls is not None and (yield from self._addressed(name[0])):
                continue
            yield from self._message(ends, any(word in header for word in format_.reasoning_headers))

    def _addressed(self, name: str) -> Generator[None, None, bool]:
        """A message whose header names a tool: its body is the arguments."""
        assert self._calls is not None
        stream = self._stream
        stream.keep = stream.pos
        before = self._sink.count
        try:
            yield from self._calls.addressed(name)
        except Malformed:
            self._sink.rollback()
            stream.pos = stream.keep
        stream.keep = None
        return self._sink.count > before

    def _message(self, ends: tuple[str, ...], reasoning: bool) -> Generator[None, None, None]:
        self._in_reasoning = reasoning
        if reasoning and self._inline:
            self._write(self._format.reasoning_start, reasoning=True)
        begin = ends[-1]
        openings = () if self._format.recipient else self._openings()
        trim = True
        while True:
            marker, _ = yield from self._text((*ends, *openings), trim, reasoning=reasoning)
            if marker in openings:
                trim = yield from self._call(str(marker), reasoning=reasoning)
                continue
            break
        if marker == begin:
            self._stream.pos -= len(begin)
        if reasoning and self._inline and marker is not None:
            self._write(self._format.reasoning_end, reasoning=True)
        self._in_reasoning = False

    def _openings(self) -> tuple[str, ...]:
        return self._format.openings if self._calls is not None else ()

    def _leading(self, markers: tuple[str, ...]) -> Generator[None, None, str | None]:
        """Consume one of ``markers`` where nothing but blanks stands before it: later in a text they are text."""
        stream = self._stream
        while True:
            rest = stream.text[stream.pos :]
            body = rest.lstrip()
            for marker in filter(None, markers):
                if body.startswith(marker):
                    stream.pos += len(rest) - len(body) + len(marker)
                    return marker
            if not any(marker.startswith(body) for marker in markers) or not (yield from stream.wait()):
                return None

    def _markers(self) -> tuple[str, ...]:
        markers = [*self._openings(), *self._format.wrappers, self._format.call_lead]
        return tuple(dict.fromkeys(marker.strip() for marker in markers if marker.strip()))

    def _at_start(self, trim: bool) -> Generator[None, None, bool]:
        """A call that nothing opens (Llama's bare JSON) may stand where an answer begins."""
        if self._calls is None or not self._calls.bare:
            return False
        stream = self._stream
        stream.keep = stream.pos
        char = yield from stream.blanks()
        if char == ";" and self._sink.count:
            stream.pos += 1
            char = yield from stream.blanks()
        if char and char in self._calls.bare:
            lead = stream.text[stream.keep : stream.pos]
            self._gap = ""
            if (yield from self._call("", reasoning=False)):
                return True
            self._write(lead.lstrip() if trim else lead, reasoning=False)
        else:
            stream.pos = stream.keep
        stream.keep = None
        return False

    def _reasoning(self, opened: bool) -> Generator[None, None, None]:
        format_ = self._format
        end = format_.reasoning_end.strip()
        self._in_reasoning = True
        if self._inline and (start := format_.reasoning_start):
            self._write(start, reasoning=True)
        trim = not self._inline
        while True:
            markers = tuple(dict.fromkeys((end, *self._openings())))
            marker, _ = yield from self._text(markers, trim, reasoning=True)
            trim = False
            if marker is None or marker == end:
                break
            if (yield from self._call(marker, reasoning=True)):
                # The model closed its reasoning by calling.
                break
        self._in_reasoning = False
        if self._inline and marker == end:
            self._write(end, reasoning=True)

    def _text(
        self, markers: tuple[str, ...], trim: bool, *, reasoning: bool
    ) -> Generator[None, None, tuple[str | None, bool]]:
        """Write text up to the first marker, and consume it. Returns it (None: the text is over) and whether
        anything was written. Blanks right before a marker are dropped, and those at the start with ``trim``."""
        stream = self._stream
        wrote = False
        while True:
            if trim and not wrote:
                yield from stream.blanks()
            rest = stream.text[stream.pos :]
            found = first_of(markers, rest)
            if found is not None:
                at, marker = found.start(), found.group()
                if any(len(m) > len(rest) - at and m.startswith(rest[at:]) for m in markers) and not stream.closed:
                    wrote |= self._write_until(stream.pos + at - _blank_tail(rest[:at]), reasoning)
                    yield from stream.wait()
                    continue
                keep_blanks = self._inline and reasoning
                written = rest[:at] if keep_blanks else rest[:at].rstrip()
                wrote |= self._write(written, reasoning=reasoning)
                self._gap = rest[len(written) : at]
                stream.pos += at + len(marker)
                return marker, wrote
            if stream.closed:
                wrote |= self._write(rest, reasoning=reasoning)
                stream.pos = len(stream.text)
                return None, wrote
            wrote |= self._write_until(len(stream.text) - held_back(rest, markers), reasoning)
            if wrote and stream.pos == len(stream.text) and stream.keep is None:
                self._within = beginning_of(markers), reasoning
            yield from stream.wait()
            self._within = None

    def _write_until(self, end: int, reasoning: bool) -> bool:
        text = self._stream.text[self._stream.pos : end]
        self._stream.pos = max(end, self._stream.pos)
        return self._write(text, reasoning=reasoning)

    def _write(self, text: str, *, reasoning: bool) -> bool:
        if not text:
            return False
        self._events.append(self._delta(text, reasoning))
        return True

    def _delta(self, text: str, reasoning: bool) -> ReasoningDelta | TextDelta:
        return ReasoningDelta(text, self._choice) if reasoning and not self._inline else TextDelta(text, self._choice)

    def _call(self, marker: str, *, reasoning: bool) -> Generator[None, None, bool]:
        """The calls that ``marker`` opens. False when there is none: then the marker was given back as text."""
        assert self._calls is not None
        stream = self._stream
        stream.keep = stream.pos
        before = self._sink.count
        called = True
        try:
            yield from self._calls.section(marker)
        except Malformed:
            self._sink.rollback()
            stream.pos = stream.keep
            called = self._sink.count > before
        stream.keep = None
        if not called:
            self._write(self._gap + marker, reasoning=reasoning)
        return called


def _blank_tail(text: str) -> int:
    return len(text) - len(text.rstrip())


def _merged(events: Sequence[ChatEvent]) -> list[ChatEvent]:
    """Neighbouring deltas of one kind as one."""
    merged: list[ChatEvent] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            merged[-1] = TextDelta(last.text + event.text, event.choice)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            merged[-1] = ReasoningDelta(last.text + event.text, event.choice)
        elif isinstance(event, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.index == event.index:
            merged[-1] = ToolCallDelta(event.index, last.arguments + event.arguments, event.choice)
        else:
            merged.append(event)
    return merged
