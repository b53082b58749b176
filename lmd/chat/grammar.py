"""The Lark grammar (llguidance's dialect) of a format's tool calls.

Markers are written ``%%"text"%%`` and free text up to a marker ``%%until "text"%%``; `lmd.engine.marked` says why.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmd.chat.calls import only_string
from lmd.chat.formats import Format, Style
from lmd.chat.markers import TOKEN
from lmd.generation import Tool

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One fixed style, the one that templates write (Python's): where blanks are free, small models fall into endless ones."""

_MARKED = re.compile(r'%%(until )?("(?:[^"\\]|\\.)*")%%')
_GUIDANCE_KEYS = ("x-guidance",)


def literal(text: str) -> str:
    """``text`` as a sequence of Lark terms, its markers marked."""
    terms, at = [], 0
    for match in TOKEN.finditer(text):
        if match.start() > at:
            terms.append(quoted(text[at : match.start()]))
        terms.append(f"%%{quoted(match.group())}%%")
        at = match.end()
    if at < len(text):
        terms.append(quoted(text[at:]))
    return " ".join(terms)


def until(marker: str) -> str:
    """Free text up to and with ``marker``, whose first token (or whole text) ends it."""
    match = TOKEN.match(marker)
    if match is None:
        return f"%%until {quoted(marker)}%%"
    rest = literal(marker[match.end() :])
    return f"%%until {quoted(match.group())}%% {rest}".rstrip()


def as_text(lark: str) -> str:
    """The grammar for a vocabulary in which no marker is a token: what can be checked without one."""
    rules: dict[str, str] = {}

    def resolved(match: re.Match[str]) -> str:
        if not match.group(1):
            return match.group(2)
        return rules.setdefault(match.group(2), f"until_{len(rules)}")

    text = _MARKED.sub(resolved, lark)
    return text + "".join(f"\n{name}[suffix={end}]: /(.|\\n)*/\n" for end, name in rules.items())


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: Mapping[str, Any]) -> str:
    """A ``%json`` term in our one style."""
    return "%json " + json.dumps({**without_guidance(schema), "x-guidance": JSON_STYLE}, ensure_ascii=False)


def without_guidance(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A client's schema sets no options of ours."""
    return {key: value for key, value in schema.items() if key not in _GUIDANCE_KEYS}


def object_schema(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments. Without parameters: no arguments. A schema that names no type is an object."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = without_guidance(tool.parameters)
    if not any(key in schema for key in ("type", "$ref", "anyOf", "oneOf", "allOf")):
        schema["type"] = "object"
    if schema.get("type") == "object" and not schema.get("properties") and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


class CallGrammar:
    """Rules for calls of ``tools``; ``calls`` is the rule's name, to be used in a start rule."""

    def __init__(self, format_: Format, tools: Sequence[Tool], *, many: bool) -> None:
        self._format = format_
        self._tools = tools
        self._many = many and format_.parallel
        self._rules: list[str] = []

    @property
    def exact(self) -> bool:
        """Whether arguments are held to their schemas (else only the name and the markers are)."""
        return self._format.style not in {Style.BRACES, Style.ELEMENTS}

    def rules(self) -> str:
        """The rules; the first is ``calls``."""
        format_ = self._format
        calls = self._channel_calls() if format_.style is Style.CHANNELS else self._calls()
        return "\n".join([f"calls: {calls}", *self._rules]) + "\n"

    def _calls(self) -> str:
        format_ = self._format
        alternatives = " | ".join(self._rule(f"call_{i}", self._call(tool)) for i, tool in enumerate(self._tools))
        one = self._rule("one_call", alternatives)
        if format_.style is Style.PYTHONIC or (format_.style is Style.JSON and format_.json.array):
            more = f' ( ", " {one} )*' if self._many else ""
            section_end = f" {literal(format_.section_end)}" if format_.section_end else ""
            return f'{literal(format_.section_start.lstrip())} "[" {one}{more} "]"{section_end}'
        first = literal((format_.section_start + format_.call_start).lstrip())
        between = literal(format_.call_end + format_.separator + format_.call_start)
        last = literal((format_.call_end + format_.section_end).rstrip())
        more = f" ( {between} {one} )*" if self._many and between else ""
        return " ".join(filter(None, [first, one + more, last]))

    def _rule(self, name: str, body: str) -> str:
        self._rules.append(f"{name}: {body}")
        return name

    def _call(self, tool: Tool) -> str:
        """One call, from after the call's start to before its end."""
        format_ = self._format
        match format_.style:
            case Style.JSON:
                return self._json_call(tool)
            case Style.NAME_JSON:
                return self._name_json_call(tool)
            case Style.TAGGED:
                return self._tagged_call(tool)
            case Style.PYTHONIC:
                return f"{quoted(tool.name + '(')} {self._pythonic_arguments(tool)} {quoted(')')}"
            case _:
                # What ends such a call ends the free text in it.
                end = format_.call_end.strip() or f"{format_.key_start}</invoke>"
                lead = tool.name + (format_.name_end or "{")
                return f"{literal(lead)} {free_before(end)}"

    def _json_call(self, tool: Tool) -> str:
        keys = self._format.json
        arguments = json_rule(object_schema(tool))
        if not keys.name:
            return f"{quoted('{' + json.dumps(tool.name) + ': ')} {arguments} {quoted('}')}"
        name = f"{json.dumps(keys.name)}: {json.dumps(tool.name, ensure_ascii=False)}"
        head = f"{name}, {json.dumps(keys.arguments)}: "
        before, after = "{", "}"
        if keys.wrapper:
            before, after = "{" + json.dumps(keys.wrapper) + ": {", "}}"
        if not keys.id:
            return f"{quoted(before + head)} {arguments} {quoted(after)}"
        key = json.dumps(keys.id)
        if keys.id_first:
            return f"{quoted(before + key + ': ' + chr(34))} {self._id()} {quoted(chr(34) + ', ' + head)} {arguments} {quoted(after)}"
        return f"{quoted(before + head)} {arguments} {quoted(', ' + key + ': ' + chr(34))} {self._id()} {quoted(chr(34) + after)}"

    def _id(self) -> str:
        return "/[a-zA-Z0-9]{9}/" if self._format.short_ids else "/[a-zA-Z0-9_]{1,32}/"

    def _name_json_call(self, tool: Tool) -> str:
        format_ = self._format
        arguments = json_rule(object_schema(tool))
        lead = f"{self._id()} {literal(format_.id_end)} " if format_.id_end else ""
        if format_.name_id:
            number = "/[0-9]{1,3}/" if format_.id_form else self._id()
            return f"{lead}{literal(tool.name + format_.name_id)} {number} {literal(format_.name_end)} {arguments}"
        return f"{lead}{literal(tool.name + format_.name_end)} {arguments}"

    def _tagged_call(self, tool: Tool) -> str:
        format_ = self._format
        schema = object_schema(tool)
        head = tool.name
        if format_.name_id:
            terms = [literal(head + format_.name_id), "/[0-9]{1,3}/", literal(format_.name_end)]
        else:
            terms = [literal(head + format_.name_end)]
        blanks = '( "\\n" )?' if "\n" in format_.name_end + format_.key_start + format_.call_end else ""
        for i, (key, value, required) in enumerate(_members(schema)):
            name = f"{self._rules.__len__()}_{i}"
            body = f"{literal(format_.key_start + key + format_.key_end)} {self._tagged_value(value, schema)} {blanks}"
            rule = self._rule(f"member_{name}", body)
            terms.append(rule if required else f"( {rule} )?")
        if format_.arguments_end:
            terms.append(literal(format_.arguments_end))
        return " ".join(filter(None, terms))

    def _tagged_value(self, value: Any, root: Mapping[str, Any]) -> str:
        format_ = self._format
        string = only_string(value)
        kind = ""
        if format_.type_end:
            word = format_.string_types[0] if string else _other_type(value, format_.string_types[0])
            kind = literal(word + format_.type_end) + " "
        if string:
            choices = value.get("enum") or ([value["const"]] if "const" in value else None)
            if choices:
                ends = " | ".join(quoted(choice) for choice in choices)
                return f"{kind}( {ends} ) {literal(format_.value_end)}"
            return kind + until(format_.value_end.lstrip())
        value = dict(value) if isinstance(value, Mapping) else {}
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return f"{kind}{json_rule({**definitions, **value})} {literal(format_.value_end)}"

    def _pythonic_arguments(self, tool: Tool) -> str:
        schema = object_schema(tool)
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        members = [
            (f"{quoted(key + '=')} {json_rule({**definitions, **(value if isinstance(value, Mapping) else {})})}", required)
            for key, value, required in _members(schema)
        ]
        return _listed(members)

    def _channel_calls(self) -> str:
        """gpt-oss: the recipient in the header, before or after the channel."""
        calls = []
        for i, tool in enumerate(self._tools):
            body = (
                f"{quoted('to=functions.' + tool.name)} ( {literal('<|channel|>commentary')} )? "
                f'( " " )? ( {literal("<|constrain|>")} )? ( "json" )? {literal("<|message|>")} '
                f"{json_rule(object_schema(tool))} {literal('<|call|>')}"
            )
            calls.append(self._rule(f"call_{i}", body))
        return " | ".join(calls)


def free_before(end: str) -> str:
    """Free text that does not contain ``end``; what follows writes ``end`` itself."""
    # The first character of an end marker does not occur in the text: only formats whose markers are tokens come here.
    return "/[^" + re.escape(end[0]) + r"]*/" if end else r"/(.|\n)*/"


def _members(schema: Mapping[str, Any]) -> Iterable[tuple[str, Any, bool]]:
    properties = schema.get("properties")
    required = schema.get("required")
    needed = set(required) if isinstance(required, list) else set()
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        yield key, value, key in needed


def _listed(members: Sequence[tuple[str, bool]]) -> str:
    """Members joined by commas, the optional ones in any selection, in order."""
    if not members:
        return '""'
    # From the back: what may follow when something was written, and when nothing was yet.
    after, fresh = '""', '""'
    for text, required in reversed(members):
        written = f"{text} {after}"
        following = f'", " {written}'
        fresh = written if required else f"( {written} | {fresh} )"
        after = following if required else f"( {following} | {after} )"
    return fresh


def _other_type(value: Any, string_word: str) -> str:
    """The word for a type that is no string: DeepSeek says only that, K3 names it."""
    if string_word == "true":
        return "false"
    kind = value.get("type") if isinstance(value, Mapping) else None
    return {"integer": "number"}.get(kind, kind) if isinstance(kind, str) else "object"
