"""What the readers of tool calls have in common: sections and their markers, JSON arguments, the end of a call.

Each style of calls has its reader: `lmd.chat.json_calls`, `lmd.chat.tagged`, `lmd.chat.literals`.
"""

from collections.abc import Generator
from typing import Any

from lmd.chat.formats import Format
from lmd.chat.jsontext import JsonScanner, loads
from lmd.chat.sink import CallSink
from lmd.chat.stream import Malformed, TextStream

Read = Generator[None, None, None]


class CallReader:
    """Reads the calls of one section. ``stream.keep`` stays at the end of what is settled."""

    #: Characters that begin a call which no marker opens.
    bare = ""

    def __init__(self, format_: Format, stream: TextStream, sink: CallSink) -> None:
        self._format = format_
        self._stream = stream
        self._sink = sink

    def section(self, marker: str) -> Read:
        """Everything that ``marker`` opened. `Malformed` at the first thing that is no call."""
        format_, stream = self._format, self._stream
        in_section = bool(format_.section_start.strip()) and marker == format_.section_start.strip()
        call_start = format_.call_start.strip()
        if not in_section:
            yield from self._whole_call()
            return
        first = True
        while True:
            if (char := (yield from stream.blanks())) == "":
                if first:
                    raise Malformed
                return
            if (yield from stream.take_loosely(format_.section_end)):
                if first:
                    raise Malformed
                self._settle()
                return
            if not first and format_.separator.strip():
                yield from stream.take_loosely(format_.separator)
            elif not first and char == ",":
                stream.pos += 1
                yield from stream.blanks()
            if call_start and not (yield from stream.take_loosely(call_start)):
                if first:
                    raise Malformed
                return
            yield from self._whole_call()
            first = False

    def _whole_call(self) -> Read:
        yield from self._call()
        self._settle()

    def _settle(self) -> None:
        self._stream.keep = self._stream.pos

    def _call(self) -> Read:
        """One call, its end marker included; ends with ``sink.end()``. Abstract: each style of calls has its own."""
        raise NotImplementedError

    def addressed(self, name: str) -> Read:
        """A call whose name is known already: its arguments and its end."""
        self._sink.start(name)
        yield from self._object_to_sink()
        for end in self._format.message_ends:
            if (yield from self._stream.take_loosely(end)):
                break
        else:
            if not self._at_end():
                raise Malformed
        self._sink.end()
        self._settle()

    def _end(self, marker: str) -> Read:
        """The end of a call. At the end of the text it may be missing: an end token can stand for it."""
        if marker.strip() and not (yield from self._stream.take_loosely(marker)) and not self._at_end():
            raise Malformed
        self._sink.end()

    def _at_end(self) -> bool:
        return self._stream.closed and not self._stream.text[self._stream.pos :].strip()

    # ── JSON ──────────────────────────────────────────────────────────────────────────────────

    def _json(self, *, to_sink: bool) -> Generator[None, None, str]:
        """One strict JSON value; its text, given to the sink as it comes with ``to_sink``."""
        stream, scanner = self._stream, JsonScanner()
        yield from stream.blanks()
        pieces = []
        while not scanner.done:
            if stream.pos >= len(stream.text) and not (yield from stream.wait()):
                break
            try:
                size = scanner.scan(stream.text, stream.pos)
            except ValueError as exc:
                raise Malformed from exc
            piece = stream.text[stream.pos : stream.pos + size]
            stream.pos += size
            pieces.append(piece)
            if to_sink:
                self._sink.arguments(piece)
                if self._sink.streaming:
                    self._settle()
        try:
            if not scanner.done:
                scanner.end()
        except ValueError as exc:
            raise Malformed from exc
        return "".join(pieces)

    def _object_to_sink(self) -> Read:
        """The arguments: an object, JSON text in a string that holds an object, or null for none."""
        char = yield from self._stream.blanks()
        if char == "{":
            yield from self._json(to_sink=True)
            return
        self._sink.arguments(as_object((yield from self._json(to_sink=False))))

    def _string(self) -> Generator[None, None, str]:
        if (yield from self._stream.blanks()) != '"':
            raise Malformed
        return str(loaded((yield from self._json(to_sink=False))))


def loaded(text: str) -> Any:
    try:
        return loads(text)
    except ValueError as exc:
        raise Malformed from exc


def as_object(text: str) -> str:
    value = loaded(text)
    if isinstance(value, str):
        text = value.strip() or "{}"
        value = loaded(text)
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise Malformed
    return text
