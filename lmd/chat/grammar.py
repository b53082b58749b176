"""The Lark grammar (llguidance's dialect) of a format's tool calls.

Markers are written ``%%"text"%%`` and free text up to a marker ``%%until "text"%%``; `lmd.engine.marked` says why.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmd.chat.formats import Format, Style
from lmd.chat.markers import TOKEN
from lmd.chat.members import alternatives, definitions, followed, members, object_forms
from lmd.chat.values import only_string
from lmd.generation import Tool

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One fixed style, the one that templates write (Python's): where blanks are free, small models write endless ones."""

_MARKED = re.compile(r'%%(until )?("(?:[^"\\]|\\.)*")%%')
_GUIDANCE_KEYS = ("x-guidance",)


def literal(text: str) -> str:
    """``text`` as a sequence of Lark terms, its markers marked."""
    terms, at = [], 0
    for match in TOKEN.finditer(text):
        if match.start() > at:
            terms += _lines(text[at : match.start()])
        terms.append(f"%%{quoted(match.group())}%%")
        at = match.end()
    if at < len(text):
        terms += _lines(text[at:])
    return " ".join(terms)


def _lines(text: str) -> list[str]:
    """Line breaks stand by themselves: the lexer takes the longest match, so markers must not differ in them."""
    return [quoted(piece) for piece in re.findall(r"\n+|[^\n]+", text)]


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
    """Rules for calls of ``tools``; ``lmd_calls`` is the rule's name, to be used in a start rule.

    Names begin with ``lmd_``: a client's own grammar may stand beside them.
    """

    def __init__(self, format_: Format, tools: Sequence[Tool], *, many: bool) -> None:
        self._format = format_
        self._tools = tools
        self._many = many and format_.parallel
        self._rules: list[str] = []
        self._count = 0
        self._n_tool = 0
        self._root: Mapping[str, Any] = {}
        """The schema of the tool at hand, which references are relative to."""
        self._references: dict[tuple[str, str], str] = {}

    def rules(self, *, loose: bool = False) -> str:
        """The rules; the first is ``lmd_calls``. ``loose``: the section around them may be missing."""
        calls = self._channel_calls() if self._format.style is Style.CHANNELS else self._calls(loose=loose)
        return "\n".join([f"lmd_calls: {calls}", *self._rules]) + "\n"

    def _calls(self, *, loose: bool) -> str:
        format_ = self._format
        alternatives = " | ".join(self._rule(f"call_{i}", self._call(tool)) for i, tool in enumerate(self._tools))
        one = self._rule("one_call", alternatives)
        if format_.style is Style.PYTHONIC or (format_.style is Style.JSON and format_.json.array):
            keys = format_.json
            more = f" ( {quoted(keys.array_separator)} {one} )*" if self._many else ""
            start, end = literal(format_.section_start.lstrip()), literal(format_.section_end)
            return f"{start} {quoted(keys.array_open)} {one}{more} {quoted(keys.array_close)} {end}".strip()
        call_end = format_.call_end.lstrip() if format_.style is Style.TAGGED else format_.call_end
        if format_.style in {Style.BRACES, Style.ELEMENTS}:
            call_end = ""
        first = literal((format_.section_start + format_.call_start).lstrip().removeprefix(format_.prefill))
        between = literal(call_end + format_.separator + format_.call_start)
        last = literal(call_end if format_.section_end else call_end.rstrip())
        if format_.section_end:
            # Some models end their turn with the last call.
            last += f" ( {literal(format_.section_end.rstrip())} )?"
        if format_.call_lead and not first:
            first = f"( {literal(format_.call_lead)} )?"
        if format_.blank_after_start:
            first, between = f"{first} /[ \\n]?/", f"{between} /[ \\n]?/"
        more = f" ( {between} {one} )*" if self._many and between else ""
        whole = " ".join(filter(None, [first, one + more, last]))
        if not loose or len(format_.openings) < 2:
            return whole
        bare = " ".join(filter(None, [literal(format_.call_start.lstrip()), one + more, literal(call_end.rstrip())]))
        return f"{whole} | {bare}"

    def _rule(self, name: str, body: str) -> str:
        self._rules.append(f"lmd_{name}: {body}")
        return f"lmd_{name}"

    def _fresh(self, kind: str, body: str) -> str:
        self._count += 1
        return self._rule(f"{kind}_{self._count}", body)

    def _call(self, tool: Tool) -> str:
        """One call, from after the call's start to before its end."""
        format_ = self._format
        self._root = object_schema(tool)
        self._references.clear()
        self._n_tool += 1
        match format_.style:
            case Style.JSON:
                return self._json_call(tool)
            case Style.NAME_JSON:
                return self._name_json_call(tool)
            case Style.TAGGED:
                return self._tagged_call(tool)
            case Style.PYTHONIC:
                return f"{quoted(tool.name + '(')} {self._pythonic_arguments()} {quoted(')')}"
            case Style.BRACES:
                return f"{quoted(tool.name)} {self._braced_object(self._root)} {literal(format_.call_end)}"
            case _:
                end = literal(f"{format_.key_start}</invoke>")
                return f"{literal(tool.name + format_.name_end)} {self._elements(self._root)} {end}"

    def _referred(self, schema: Mapping[str, Any], context: str, build: Callable[[Any], str]) -> str:
        """The rule for what ``schema`` refers to, made once, so that references may go in circles."""
        key = (str(schema["$ref"]), context)
        if key not in self._references:
            name = f"referred_{self._n_tool}_{len(self._references)}"
            self._references[key] = f"lmd_{name}"
            self._rule(name, build(followed(schema, self._root)))
        return self._references[key]

    def _braces(self, schema: Any) -> str:
        """A value with bare keys and a quote token; what the schema leaves open is a scalar."""
        if isinstance(schema, Mapping) and "$ref" in schema:
            return self._referred(schema, "braces", self._braces)
        quote = '<|"|>'
        if choices := _strings(schema):
            return f"{literal(quote)} ( {' | '.join(map(quoted, choices))} ) {literal(quote)}"
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if kind == "object" or (
            kind is None and isinstance(schema, Mapping) and {"properties", "allOf"} & schema.keys()
        ):
            return self._braced_object(schema)
        if options := alternatives(schema):
            return _choice([self._braces(option) for option in options])
        text = f"{literal(quote)} {until(quote)}"
        if kind == "string":
            return text
        if kind == "array":
            item = self._fresh("item", self._braces(schema.get("items")))
            return f'"[" ( {item} ( "," {item} )* )? "]"'
        scalar = _SCALARS.get(str(kind))
        return scalar or f"( {text} | {' | '.join(_SCALARS.values())} )"

    def _braced_object(self, schema: Any) -> str:
        return _choice([self._braced(form) for form in object_forms(schema, self._root)])

    def _braced(self, form: Mapping[str, Any]) -> str:
        listed = [(f"{quoted(key + ':')} {self._braces(value)}", required) for key, value, required in members(form)]
        return f'"{{" {_listed(listed, ",")} "}}"'

    def _elements(self, schema: Any) -> str:
        """Elements in elements; what the schema leaves open is free text."""
        return _choice([self._element_members(form) for form in object_forms(schema, self._root)])

    def _element_members(self, form: Mapping[str, Any]) -> str:
        lead = self._format.key_start
        terms = []
        for key, value, required in members(form):
            rule = self._fresh("member", f"{literal(f'{lead}<{key}>')} {self._element(value, key)}")
            terms.append(rule if required else f"( {rule} )?")
        return " ".join(terms)

    def _element(self, schema: Any, key: str) -> str:
        if isinstance(schema, Mapping) and "$ref" in schema:
            return self._referred(schema, f"element {key}", lambda found: self._element(found, key))
        lead = self._format.key_start
        end = f"{lead}</{key}>"
        if choices := _strings(schema):
            return f"( {' | '.join(map(quoted, choices))} ) {literal(end)}"
        kind = _kind(schema)
        if kind == "object":
            return f"{self._elements(schema)} {literal(end)}".strip()
        if options := alternatives(schema):
            return _choice([self._element(option, key) for option in options])
        if kind == "array":
            item = self._fresh("item", f"{literal(f'{lead}<item>')} {self._element(schema.get('items'), 'item')}")
            return f"( {item} )* {literal(end)}"
        scalar = _SCALARS.get(str(kind))
        return f"{scalar} {literal(end)}" if scalar else until(end)

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
            lead = f"{quoted(before + key + ': ' + chr(34))} {self._id()} {quoted(chr(34) + ', ' + head)}"
            return f"{lead} {arguments} {quoted(after)}"
        trail = f"{quoted(', ' + key + ': ' + chr(34))} {self._id()} {quoted(chr(34) + after)}"
        return f"{quoted(before + head)} {arguments} {trail}"

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
        # Templates put a line break after the name or after each argument, and one or none when there are no arguments.
        broken = "\n" in format_.name_end + format_.key_start + format_.call_end
        blanks = r"/\n{0,2}/" if broken else ""
        name_end = format_.name_end.rstrip()
        if format_.name_id:
            terms = [literal(tool.name + format_.name_id), "/[0-9]{1,3}/", literal(name_end), blanks]
        else:
            terms = [literal(tool.name + name_end), blanks]
        terms.append(_choice([self._tagged_members(form, blanks) for form in object_forms(self._root, self._root)]))
        return " ".join(filter(None, terms))

    def _tagged_members(self, form: Mapping[str, Any], blanks: str) -> str:
        terms = []
        for key, value, required in members(form):
            start = literal(self._format.key_start.lstrip() + key + self._format.key_end)
            rule = self._fresh("member", f"{start} {self._tagged_value(value)} {blanks}")
            terms.append(rule if required else f"( {rule} )?")
        return " ".join(terms)

    def _tagged_value(self, value: Any) -> str:
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
        return f"{kind}{self._json_value(value)} {literal(format_.value_end)}"

    def _json_value(self, schema: Any) -> str:
        return json_rule({**definitions(self._root), **(schema if isinstance(schema, Mapping) else {})})

    def _pythonic_arguments(self) -> str:
        forms = []
        for form in object_forms(self._root, self._root):
            arguments = [(f"{quoted(key + '=')} {self._json_value(value)}", need) for key, value, need in members(form)]
            forms.append(_listed(arguments))
        return _choice(forms)

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


_SCALARS = {
    "integer": "/-?(0|[1-9][0-9]{0,15})/",
    "number": r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/",
    "boolean": '( "true" | "false" )',
    "null": '"null"',
}


def _choice(bodies: Sequence[str]) -> str:
    """Any of ``bodies``, where "" stands for nothing at all."""
    if len(bodies) == 1:
        return bodies[0]
    return f"( {' | '.join(body or quoted('') for body in dict.fromkeys(bodies))} )"


def _kind(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return None
    return schema.get("type", "object" if {"properties", "allOf"} & schema.keys() else None)


def _strings(schema: Any) -> list[str]:
    """The strings that a schema chooses from, where it names them."""
    if not isinstance(schema, Mapping):
        return []
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return list(choices) if choices and all(isinstance(choice, str) for choice in choices) else []


def _listed(members: Sequence[tuple[str, bool]], comma: str = ", ") -> str:
    """Members joined by commas, the optional ones in any selection, in order."""
    if not members:
        return '""'
    # From the back: what may follow when something was written, and when nothing was yet.
    after, fresh = '""', '""'
    for text, required in reversed(members):
        written = f"{text} {after}"
        following = f"{quoted(comma)} {written}"
        fresh = written if required else f"( {written} | {fresh} )"
        after = following if required else f"( {following} | {after} )"
    return fresh


def _other_type(value: Any, string_word: str) -> str:
    """The word for a type that is no string: DeepSeek says only that, K3 names it."""
    if string_word == "true":
        return "false"
    kind = value.get("type") if isinstance(value, Mapping) else None
    return {"integer": "number"}.get(kind, kind) if isinstance(kind, str) else "object"
