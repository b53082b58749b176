"""Readers of calls whose arguments are no JSON: Python literals, bare-key objects, nested elements.

None of these can be turned into JSON before a value has ended, so arguments are given out value by value.
"""

import ast
import re
from collections.abc import Generator, Mapping
from typing import Any

from lmd.chat.calls import CallReader, Read
from lmd.chat.jsontext import MAX_DEPTH, dumps, loads
from lmd.chat.members import followed, properties_of
from lmd.chat.sink import MAX_NAME
from lmd.chat.stream import Malformed
from lmd.chat.values import typed

_IDENTIFIER = re.compile(r"[^\s=(),]+")
_JSON_WORDS = {"true": "True", "false": "False", "null": "None"}


class PythonicReader(CallReader):
    """`Style.PYTHONIC`: ``[name(key='text', n=1), other()]`` (LFM2, Llama 4)."""

    def section(self, marker: str) -> Read:
        stream = self._stream
        if (yield from stream.blanks()) != "[":
            raise Malformed
        stream.pos += 1
        while True:
            yield from self._call()
            char = yield from stream.blanks()
            if char == "":
                self._settle()
                return
            stream.pos += 1
            if char == "]":
                break
            if char != ",":
                stream.pos -= 1
                raise Malformed
            self._settle()
        self._settle()
        if self._format.section_end.strip():
            yield from stream.take_loosely(self._format.section_end)
            self._settle()

    def _call(self) -> Read:
        stream, sink = self._stream, self._sink
        yield from stream.blanks()
        name, _ = yield from stream.until(["("], max(sink.longest_name, MAX_NAME))
        name = name.strip()
        sink.start(name)
        properties = properties_of(sink.schema(name))
        sink.arguments("{")
        keys: set[str] = set()
        while (char := (yield from stream.blanks())) != ")":
            if keys:
                if char != ",":
                    raise Malformed
                stream.pos += 1
                yield from stream.blanks()
            key, _ = yield from stream.until(["="], MAX_NAME)
            key = key.strip()
            if not key or key in keys:
                raise Malformed
            value = yield from self._value(properties.get(key))
            sink.arguments((", " if keys else "") + dumps(key) + ": " + value)
            keys.add(key)
        stream.pos += 1
        sink.arguments("}")
        sink.end()

    def _value(self, schema: Any) -> Generator[None, None, str]:
        char = yield from self._stream.blanks()
        if char == "'" or (char == '"' and self._format.escapes):
            return dumps((yield from self._quoted(char)))
        if char == '"':
            return dumps((yield from self._string()))
        text = yield from self._balanced()
        try:
            return dumps(loads(text))
        except ValueError:
            pass
        words = re.sub(r"\b(true|false|null)\b(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", _python_word, text)
        value = typed(words, None)
        if value.startswith('"'):
            raise Malformed
        return value

    def _quoted(self, quote: str) -> Generator[None, None, str]:
        """A string whose template escapes nothing ends at the quote that an argument or the call's end follows."""
        stream = self._stream
        stream.pos += 1
        end = 0
        while True:
            text = stream.text[stream.pos :]
            end = text.find(quote, end)
            if end < 0:
                end = len(text)
                if not (yield from stream.wait()):
                    raise Malformed
                continue
            if self._format.escapes and _escaped_at(text, end):
                end += 1
                continue
            settled = self._format.escapes or _follows(text[end + 1 :], stream.closed)
            if settled is None:
                if not (yield from stream.wait()):
                    raise Malformed
                continue
            if not settled:
                end += 1
                continue
            body = text[:end]
            stream.pos += end + 1
            return _unescaped(body, quote) if self._format.escapes else body

    def _balanced(self) -> Generator[None, None, str]:
        """Up to the comma or bracket that ends the value."""
        stream = self._stream
        depth, quote, i = 0, "", 0
        while True:
            if stream.pos + i >= len(stream.text) and not (yield from stream.wait()):
                raise Malformed
            char = stream.text[stream.pos + i]
            if quote:
                if char == "\\":
                    i += 1
                elif char == quote:
                    quote = ""
            elif char in "'\"":
                quote = char
            elif char in "([{":
                depth += 1
            elif char in ")]}" or char == ",":
                if depth == 0:
                    break
                depth -= char != ","
            if depth > MAX_DEPTH:
                raise Malformed
            i += 1
        text = stream.text[stream.pos : stream.pos + i]
        stream.pos += i
        return text.strip()


def _python_word(match: re.Match[str]) -> str:
    return _JSON_WORDS[match.group()]


def _escaped_at(text: str, at: int) -> bool:
    body = text[:at]
    return (len(body) - len(body.rstrip("\\"))) % 2 == 1


def _follows(rest: str, closed: bool) -> bool | None:
    """Whether ``rest`` is what follows an argument; None: more text is needed to tell."""
    tail = rest.lstrip()
    if not tail:
        return False if closed else None
    if tail[0] == ")":
        after = tail[1:].lstrip()
        return after[0] in ",]" if after else (True if closed else None)
    if tail[0] != ",":
        return False
    match = _IDENTIFIER.match(tail[1:].lstrip())
    if match is None:
        return None if not tail[1:].strip() and not closed else False
    after = tail[1:].lstrip()[match.end() :].lstrip()
    if not after:
        return False if closed or match.end() > MAX_NAME else None
    return after[0] == "="


def _unescaped(body: str, quote: str) -> str:
    if "\\" not in body:
        return body
    try:
        value = ast.literal_eval(
            f"{quote * 3}{body}{quote * 3}" if not body.endswith(quote) else f"{quote}{body}{quote}"
        )
    except (ValueError, SyntaxError):
        return body
    return value if isinstance(value, str) else body


class BracesReader(CallReader):
    """`Style.BRACES`: ``call:name{key:<|"|>text<|"|>,o:{a:[1,true]}}`` (Gemma 4)."""

    QUOTE = '<|"|>'

    def _call(self) -> Read:
        stream, sink = self._stream, self._sink
        name, _ = yield from stream.until(["{"], max(sink.longest_name, MAX_NAME))
        sink.start(name.strip())
        yield from self._object(0, top=True)
        yield from self._end(self._format.call_end)

    def _object(self, depth: int, *, top: bool = False) -> Generator[None, None, str]:
        """The members after a consumed brace. At the top they go to the sink one by one."""
        stream = self._stream
        members: list[str] = []
        if top:
            self._sink.arguments("{")
        while (char := (yield from stream.blanks())) != "}":
            if members:
                if char != ",":
                    raise Malformed
                stream.pos += 1
                yield from stream.blanks()
            if (yield from stream.take(self.QUOTE)):
                key, _ = yield from stream.until([self.QUOTE], MAX_NAME * 4)
                if not (yield from stream.take(":")):
                    raise Malformed
            else:
                key, _ = yield from stream.until([":"], MAX_NAME * 4)
            value = yield from self._value(depth + 1)
            members.append(f"{dumps(key)}: {value}")
            if top:
                self._sink.arguments((", " if len(members) > 1 else "") + members[-1])
        stream.pos += 1
        if top:
            self._sink.arguments("}")
        return "{" + ", ".join(members) + "}"

    def _value(self, depth: int) -> Generator[None, None, str]:
        stream = self._stream
        if depth > MAX_DEPTH // 2:
            raise Malformed
        char = yield from stream.blanks()
        if char == "<":
            if not (yield from stream.take(self.QUOTE)):
                raise Malformed
            text, _ = yield from stream.until([self.QUOTE])
            return dumps(text)
        if char == "{":
            stream.pos += 1
            return (yield from self._object(depth))
        if char == "[":
            stream.pos += 1
            items: list[str] = []
            while (char := (yield from stream.blanks())) != "]":
                if items:
                    if char != ",":
                        raise Malformed
                    stream.pos += 1
                items.append((yield from self._value(depth + 1)))
            stream.pos += 1
            return "[" + ", ".join(items) + "]"
        word, end = yield from stream.until([",", "}", "]"], MAX_NAME)
        stream.pos -= len(end)
        value = typed(word.strip(), None)
        if value.startswith('"'):
            raise Malformed
        return value


class ElementsReader(CallReader):
    """`Style.ELEMENTS`: each argument an element, objects and arrays as elements in it (MiniMax M3).

    ``key_start`` is what precedes every tag. A leaf's type is what the schema says, else what the text looks like.
    """

    def _call(self) -> Read:
        format_, stream, sink = self._format, self._stream, self._sink
        name, _ = yield from stream.until([format_.name_end.strip()], max(sink.longest_name, MAX_NAME))
        name = name.strip()
        sink.start(name)
        self._root = sink.schema(name)
        sink.arguments("{")
        n = 0
        while (tag := (yield from self._tag())) != "/invoke":
            if tag.startswith("/"):
                raise Malformed
            value = yield from self._element(tag, self._property(self._root, tag), 1)
            sink.arguments((", " if n else "") + dumps(tag) + ": " + dumps(value))
            n += 1
        sink.arguments("}")
        sink.end()

    def _tag(self) -> Generator[None, None, str]:
        stream = self._stream
        yield from stream.blanks()
        if not (yield from stream.take(self._format.key_start + "<")):
            raise Malformed
        tag, _ = yield from stream.until([">"], MAX_NAME)
        return tag

    def _element(self, name: str, schema: Any, depth: int) -> Generator[None, None, Any]:
        if depth > MAX_DEPTH // 2:
            raise Malformed
        stream, lead = self._stream, self._format.key_start + "<"
        text, _ = yield from stream.until([lead])
        tag, _ = yield from stream.until([">"], MAX_NAME)
        if tag == f"/{name}":
            return self._leaf(text, schema)
        if text.strip() or tag.startswith("/"):
            raise Malformed
        children: list[tuple[str, Any]] = []
        while tag != f"/{name}":
            if tag.startswith("/"):
                raise Malformed
            inner = self._items(schema) if tag == "item" and _kind(schema) != "object" else self._property(schema, tag)
            children.append((tag, (yield from self._element(tag, inner, depth + 1))))
            tag = yield from self._tag()
        if _kind(schema) == "array" or (_kind(schema) != "object" and all(key == "item" for key, _ in children)):
            return [value for _, value in children]
        return dict(children)

    def _property(self, schema: Any, key: str) -> Any:
        return followed(properties_of(schema, self._root).get(key), self._root)

    def _items(self, schema: Any) -> Any:
        return followed(schema.get("items"), self._root) if isinstance(schema, Mapping) else None

    def _leaf(self, text: str, schema: Any) -> Any:
        if not text.strip() and _kind(schema) in {"object", "array"}:
            return {} if _kind(schema) == "object" else []
        return loads(typed(text, schema))


def _kind(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return kind if isinstance(kind, str) else ""
