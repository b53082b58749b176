"""The reader of calls whose arguments stand between tags."""

from typing import Any

from lmd.chat.calls import CallReader, Read
from lmd.chat.jsontext import dumps, escaped
from lmd.chat.members import properties_of
from lmd.chat.sink import MAX_NAME
from lmd.chat.stream import Malformed
from lmd.chat.values import only_string, typed


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
        properties = properties_of(sink.schema(name))
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
