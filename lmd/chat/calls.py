"""Tool calls out of a stream: one reader a style, all writing to one sink."""

import ast
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from lmd.chat.formats import Format, Style
from lmd.chat.ids import new_id
from lmd.chat.jsontext import JsonScanner, dumps, escaped, loads
from lmd.chat.stream import Malformed, TextStream
from lmd.generation import ReasoningDelta, TextDelta, Tool, ToolCallDelta, ToolCallEnd, ToolCallStart

MAX_NAME = 256
_UNKNOWN_NAME = re.compile(r"[^\s<>\[\]{}\"'`|]+")

Read = Generator[None, None, None]
Event = ReasoningDelta | TextDelta | ToolCallStart | ToolCallDelta | ToolCallEnd


class CallSink:
    """Turns what a reader finds into events, and takes them back when the call was none.

    ``streaming``: events are given out as they come. Otherwise those of a call stay uncommitted until it is whole.
    """

    def __init__(
        self, format_: Format, tools: Sequence[Tool], events: list[Event], choice: int, *, streaming: bool
    ) -> None:
        self._format = format_
        self._tools = {tool.name: tool for tool in tools}
        self._events = events
        self._choice = choice
        self._streaming = streaming
        self._begun: int | None = None
        self._ids: set[str] = set()
        self.count = 0

    @property
    def committed(self) -> int:
        return len(self._events) if self._begun is None else self._begun

    @property
    def streaming(self) -> bool:
        return self._streaming

    @property
    def longest_name(self) -> int:
        return max(map(len, self._tools), default=MAX_NAME)

    def taken(self, n: int) -> None:
        if self._begun is not None:
            self._begun -= n

    def known(self, name: str) -> bool:
        return name in self._tools

    def schema(self, name: str) -> Mapping[str, Any]:
        tool = self._tools.get(name)
        return (tool.parameters if tool is not None else None) or {}

    def start(self, name: str, id_: str = "") -> None:
        """`Malformed` when no tool has that name: it was no call."""
        if not self.known(name):
            raise Malformed
        if not self._streaming:
            self._begun = len(self._events)
        id_ = id_ if id_ and id_ not in self._ids else new_id(self._format, name, self.count, self._ids)
        self._ids.add(id_)
        self._events.append(ToolCallStart(self.count, id_, name, self._choice))
        self.count += 1

    def arguments(self, text: str) -> None:
        if text:
            self._events.append(ToolCallDelta(self.count - 1, text, self._choice))

    def end(self) -> None:
        self._events.append(ToolCallEnd(self.count - 1, self._choice))
        self._begun = None

    def rollback(self) -> None:
        if self._begun is not None:
            for event in self._events[self._begun :]:
                if isinstance(event, ToolCallStart):
                    self._ids.discard(event.id)
                    self.count -= 1
            del self._events[self._begun :]
            self._begun = None


class CallReader:
    """Reads the calls of one section. ``stream.keep`` stays at the end of what is settled."""

    #: Characters that begin a call which no marker opens.
    bare = ""

    def __init__(self, format_: Format, stream: TextStream, sink: CallSink) -> None:
        self._format = format_
        self._stream = stream
        self._sink = sink

    @property
    def openings(self) -> tuple[str, ...]:
        """What opens calls in the text. Where sections have calls between markers, a call without its section too."""
        format_ = self._format
        found = [format_.opening]
        if format_.section_start.strip() and len(format_.call_start.strip()) > 2:
            found.append(format_.call_start.strip())
        return tuple(filter(None, found))

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
        self._sink.arguments(_as_object((yield from self._json(to_sink=False))))

    def _string(self) -> Generator[None, None, str]:
        if (yield from self._stream.blanks()) != '"':
            raise Malformed
        return str(_loads((yield from self._json(to_sink=False))))


def _loads(text: str) -> Any:
    try:
        return loads(text)
    except ValueError as exc:
        raise Malformed from exc


def _as_object(text: str) -> str:
    value = _loads(text)
    if isinstance(value, str):
        text = value.strip() or "{}"
        value = _loads(text)
    if value is None:
        return "{}"
    if not isinstance(value, dict):
        raise Malformed
    return text


class JsonReader(CallReader):
    """`Style.JSON`: ``{"name": …, "arguments": {…}}``, in an array or not, between markers or bare."""

    def __init__(self, format_: Format, stream: TextStream, sink: CallSink) -> None:
        super().__init__(format_, stream, sink)
        self.bare = "" if format_.opening else "{"

    @property
    def openings(self) -> tuple[str, ...]:
        if not self._format.opening:
            return tuple(w for w in self._format.wrappers if w == "<|python_tag|>")
        return super().openings

    def section(self, marker: str) -> Read:
        if not self._format.json.array and (yield from self._stream.blanks()) != "[":
            yield from super().section(marker)
            return
        stream = self._stream
        if (yield from stream.blanks()) != "[":
            # Some models leave the array out when there is one call.
            yield from self._whole_call_in_list()
        else:
            stream.pos += 1
            while True:
                yield from self._whole_call_in_list()
                char = yield from stream.blanks()
                if char == ",":
                    stream.pos += 1
                elif char == "]":
                    stream.pos += 1
                    break
                elif char == "":
                    break
                else:
                    raise Malformed
            self._settle()
        if self._format.section_end.strip():
            yield from stream.take_loosely(self._format.section_end)
        elif self._format.call_end.strip():
            yield from stream.take_loosely(self._format.call_end)
        self._settle()

    def _whole_call_in_list(self) -> Read:
        yield from self._object()
        self._sink.end()
        self._settle()

    def _call(self) -> Read:
        yield from self._object()
        yield from self._end(self._format.call_end)

    def _object(self) -> Read:
        stream, keys, sink = self._stream, self._format.json, self._sink
        if (yield from stream.blanks()) != "{":
            raise Malformed
        stream.pos += 1
        if not keys.name:
            name = yield from self._string()
            yield from self._colon()
            sink.start(name)
            yield from self._object_to_sink()
            if (yield from stream.blanks()) != "}":
                raise Malformed
            stream.pos += 1
            return
        found: dict[str, str] = {}
        yield from self._members(found, keys.wrapper)
        if "started" in found:
            if "arguments" not in found:
                sink.arguments("{}")
            return
        if "name" not in found:
            raise Malformed
        sink.start(found["name"], found.get("id", ""))
        sink.arguments(_as_object(found["arguments"]) if "arguments" in found else "{}")

    def _members(self, found: dict[str, str], wrapper: str) -> Read:
        """The members of an object whose brace is consumed, up to and with its closing brace."""
        stream, keys, sink = self._stream, self._format.json, self._sink
        if (yield from stream.blanks()) == "}":
            stream.pos += 1
            return
        while True:
            key = yield from self._string()
            yield from self._colon()
            if wrapper and key == wrapper and (yield from stream.blanks()) == "{":
                stream.pos += 1
                yield from self._members(found, "")
            elif key == keys.name and "name" not in found:
                found["name"] = yield from self._string()
                if not sink.known(found["name"]):
                    raise Malformed
            elif key in {keys.arguments, "arguments", "parameters"} and "arguments" not in found:
                # An id after the arguments (Mistral) comes too late: the call has begun, with an id of ours.
                if "name" in found:
                    sink.start(found["name"], found.get("id", ""))
                    found["started"] = "1"
                    yield from self._object_to_sink()
                    found["arguments"] = "1"
                else:
                    found["arguments"] = yield from self._json(to_sink=False)
            else:
                value = yield from self._json(to_sink=False)
                if key == keys.id:
                    found["id"] = str(_loads(value))
            char = yield from stream.blanks()
            if char not in {",", "}"}:
                raise Malformed
            stream.pos += 1
            if char == "}":
                return
            yield from stream.blanks()

    def _colon(self) -> Read:
        if (yield from self._stream.blanks()) != ":":
            raise Malformed
        self._stream.pos += 1


class NameJsonReader(JsonReader):
    """`Style.NAME_JSON`: ``[TOOL_CALLS]name[ARGS]{…}``."""

    def __init__(self, format_: Format, stream: TextStream, sink: CallSink) -> None:
        super().__init__(format_, stream, sink)
        self.bare = ""

    openings = CallReader.openings

    def section(self, marker: str) -> Read:
        if self._format.call_start.strip() == "[TOOL_CALLS]" and (yield from self._stream.blanks()) == "[":
            # Models of several generations share this marker: the older wrote an array of objects.
            yield from JsonReader.section(self, marker)
            return
        yield from CallReader.section(self, marker)

    def _call(self) -> Read:
        format_, stream, sink = self._format, self._stream, self._sink
        id_ = ""
        if format_.id_end:
            id_, _ = yield from stream.until([format_.id_end.strip()], MAX_NAME)
        limit = max(sink.longest_name, MAX_NAME) + 8
        name_end = format_.name_end.strip()
        ends = [end for end in (format_.name_id.strip(), name_end) if end] or ["{"]
        name, end = yield from stream.until(ends, limit)
        if end == "{":
            stream.pos -= 1
        name = name.strip()
        if format_.name_id and end == format_.name_id.strip() and not (end == ":" and sink.known(name) is False):
            id_, end = yield from stream.until([name_end] if name_end else ["{"], MAX_NAME)
            if end == "{":
                stream.pos -= 1
            id_ = format_.written_id(name, id_.strip())
        sink.start(name, id_.strip())
        yield from self._object_to_sink()
        yield from self._end(format_.call_end)


class TaggedReader(CallReader):
    """`Style.TAGGED`: ``<function=name><parameter=key>value</parameter></function>``, turned into JSON."""

    def _call(self) -> Read:
        format_, stream, sink = self._format, self._stream, self._sink
        closing = (format_.arguments_end + format_.call_end).strip()
        first_close = closing.split()[0] if closing else ""
        key_start = format_.key_start.strip()
        ends = [end for end in (format_.name_end.strip(), key_start, first_close) if end]
        name, end = yield from stream.until(ends, max(sink.longest_name, MAX_NAME) + 64)
        stream.pos -= len(end) if end != format_.name_end.strip() else 0
        name = name.strip()
        if format_.name_id:
            name = name.split(format_.name_id)[0]
        sink.start(name)
        properties = sink.schema(name).get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        sink.arguments("{")
        keys: set[str] = set()
        while True:
            yield from stream.blanks()
            if not (yield from stream.take(key_start)):
                break
            key, _ = yield from stream.until([format_.key_end.split()[0]], MAX_NAME * 4)
            key = key.strip()
            if key in keys:
                raise Malformed
            kind = ""
            rest = format_.key_end.split()[1:]
            for word in rest:
                yield from stream.blanks()
                if not (yield from stream.take(word)):
                    raise Malformed
            if format_.type_end:
                kind, _ = yield from stream.until([format_.type_end.strip()], 64)
            sink.arguments((", " if keys else "") + dumps(key) + ": ")
            keys.add(key)
            yield from self._value(properties.get(key), kind)
        sink.arguments("}")
        yield from self._end(closing)

    def _value(self, schema: Any, kind: str) -> Read:
        format_, stream, sink = self._format, self._stream, self._sink
        end = format_.value_end.strip()
        if format_.cdata:
            yield from stream.blanks()
            if (yield from stream.take("<![CDATA[")):
                value, _ = yield from stream.until(["]]>" + end])
                sink.arguments(dumps(value))
                return
        lead = format_.type_end or format_.key_end
        trim = lead.endswith("\n")
        if trim:
            yield from stream.take("\n")
        bare = kind in format_.string_types if format_.string_types else only_string(schema)
        if not (bare and sink.streaming):
            value, _ = yield from stream.until([end])
            if format_.value_end.startswith("\n"):
                value = value.removesuffix("\n")
            sink.arguments(dumps(value) if bare else typed(value, None if format_.string_types else schema))
            return
        sink.arguments('"')
        while True:
            rest = stream.text[stream.pos :]
            at = rest.find(end)
            if at >= 0:
                value = rest[:at].removesuffix("\n") if format_.value_end.startswith("\n") else rest[:at]
                sink.arguments(escaped(value) + '"')
                stream.pos += at + len(end)
                return
            # The marker's beginning, and the line break before it, may be in what is here.
            size = max(0, len(rest) - len(end) - 1)
            sink.arguments(escaped(rest[:size]))
            stream.pos += size
            self._settle()
            if not (yield from stream.wait()):
                raise Malformed


def only_string(schema: Any) -> bool:
    """Whether a value under ``schema`` is certainly a string."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    if kind is not None:
        return bool(kind == "string")
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    return bool(values) and all(isinstance(value, str) for value in values or ())


def _allows(schema: Any, kind: str) -> bool:
    if not isinstance(schema, Mapping) or "type" not in schema:
        return True
    kinds = schema["type"]
    return kind in kinds if isinstance(kinds, list) else kind == kinds


def typed(text: str, schema: Any) -> str:
    """A bare value as JSON: what it says, where its schema allows that; Python's literals too; else a string."""
    if only_string(schema):
        return dumps(text)
    try:
        value = loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
            again = dumps(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return dumps(text)
        if not isinstance(value, (dict, list, bool, int, float, type(None))):
            return dumps(text)
        return again if loads_ok(again) else dumps(text)
    if isinstance(value, str):
        return text.strip() if _allows(schema, "string") else dumps(text)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if _allows(schema, "string") and isinstance(schema, Mapping) and "type" in schema:
        kind = (
            "boolean" if isinstance(value, bool) else "null" if value is None else "array" if isinstance(value, list)
            else "object" if isinstance(value, dict) else "number"
        )  # fmt: skip
        if not _allows(schema, kind) and not (numeric and _allows(schema, "integer")):
            return dumps(text)
    return text.strip()


def loads_ok(text: str) -> bool:
    try:
        loads(text)
    except ValueError:
        return False
    return True


def reader_of(format_: Format, stream: TextStream, sink: CallSink) -> CallReader | None:
    """The reader of a format's calls; None where it has none."""
    from lmd.chat import literals

    readers: dict[Style, type[CallReader]] = {
        Style.JSON: JsonReader,
        Style.NAME_JSON: NameJsonReader,
        Style.TAGGED: TaggedReader,
        Style.PYTHONIC: literals.PythonicReader,
        Style.BRACES: literals.BracesReader,
        Style.ELEMENTS: literals.ElementsReader,
        Style.CHANNELS: NameJsonReader,
    }
    cls = readers.get(format_.style)
    return cls(format_, stream, sink) if cls is not None else None
