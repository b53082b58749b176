"""Readers of calls whose arguments are one JSON object."""

from lmd.chat.calls import CallReader, Read, as_object, loaded
from lmd.chat.formats import Format
from lmd.chat.sink import MAX_NAME, CallSink
from lmd.chat.stream import Malformed, TextStream


class JsonReader(CallReader):
    """`Style.JSON`: ``{"name": …, "arguments": {…}}``, in an array or not, between markers or bare."""

    def __init__(self, format_: Format, stream: TextStream, sink: CallSink) -> None:
        super().__init__(format_, stream, sink)
        self.bare = "" if format_.opening else "{"

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
        sink.arguments(as_object(found["arguments"]) if "arguments" in found else "{}")

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
                    found["id"] = str(loaded(value))
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
