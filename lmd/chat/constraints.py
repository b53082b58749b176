"""What a turn's answer must be: from tools, tool_choice and response_format to one grammar.

The grammar is checked here, so that what cannot be enforced is refused before any token is made.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llguidance.gbnf_to_lark import any_to_lark

from lmd.chat.formats import Format, Style
from lmd.chat.grammar import CallGrammar, json_rule, literal, object_schema, until
from lmd.chat.schema import check_grammar, check_schema
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import ResponseFormat, Tool, ToolChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintSpec:
    """As `worker.messages.Constraint` takes it. ``triggers``: free until one of them, then held from its start on."""

    kind: str
    source: str
    triggers: tuple[str, ...] = ()
    whole_calls: bool = False
    """Every call that the answer can contain satisfies its schema, so arguments may be given out as they come."""


def constrain(
    format_: Format,
    *,
    tools: Sequence[Tool] = (),
    tool_choice: ToolChoice = ToolChoice(),  # noqa: B008 -- frozen
    parallel: bool = True,
    response_format: ResponseFormat = ResponseFormat(),  # noqa: B008 -- frozen
    reasoning_open: bool = False,
) -> ConstraintSpec | None:
    """The constraint of a turn; None: any text. `Unsupported` names the schema's keyword and path."""
    for index, tool in enumerate(tools):
        check_schema(object_schema(tool), f"tools.{index}.function.parameters")
    answer = _answer(response_format)
    mode = tool_choice.mode if tools else "none"
    if mode == "named":
        tools = [tool for tool in tools if tool.name == tool_choice.name]
    if mode == "none":
        return _held(format_, answer, {}, reasoning_open) if answer else None
    grammar = CallGrammar(format_, tools, many=parallel and mode != "named")
    rules = grammar.rules()
    if mode in {"required", "named"}:
        spec: ConstraintSpec | None = _held(format_, "calls", {"calls": rules}, reasoning_open)
    elif answer:
        spec = _held(format_, f"calls | {answer}", {"calls": rules}, reasoning_open)
    else:
        spec = _lazy(format_, rules)
    if spec is None:
        return None
    return ConstraintSpec(
        kind=spec.kind,
        source=spec.source,
        triggers=spec.triggers,
        whole_calls=grammar.exact or mode in {"required", "named"},
    )


def _lazy(format_: Format, rules: str) -> ConstraintSpec | None:
    """Free until the model opens a call."""
    if format_.style is Style.CHANNELS:
        trigger = "to=functions."
    elif format_.opening:
        trigger = format_.opening
    else:
        trigger = f'{{"{format_.json.name}": "'
    source = "start: calls\n" + rules
    check_grammar(source, "tools")
    return ConstraintSpec(kind="lark", source=source, triggers=(trigger,))


def _held(format_: Format, answer: str, rules: dict[str, str], reasoning_open: bool) -> ConstraintSpec:
    """``answer`` from the first token, after a reasoning block where there may be one."""
    head, _, more = answer.partition("\n")
    lead = ""
    if format_.header is not None:
        return _held_in_channels(format_, head, more, rules)
    triggers: tuple[str, ...] = ()
    if format_.reasoning:
        end = literal(format_.reasoning_end)
        if reasoning_open:
            lead, triggers = f"{end} BLANKS ", (format_.reasoning_end.strip(),)
        elif format_.reasoning_start:
            lead = f"( {literal(format_.reasoning_start)} {until(format_.reasoning_end.strip())} BLANKS )? "
    text = f"start: {lead}answer\nanswer: {head}\n{more}\n" + "\n".join(rules.values())
    if lead:
        text += "\nBLANKS: /\\n{0,2}/\n"
    check_grammar(text, "response_format" if not rules else "tools")
    return ConstraintSpec(kind="lark", source=text, triggers=triggers)


def _held_in_channels(format_: Format, head: str, more: str, rules: dict[str, str]) -> ConstraintSpec:
    """Messages in channels: reasoning in its own, then calls, or the answer in the channel for answers."""
    alternatives = []
    for part in head.split(" | "):
        if part != "calls":
            answer = "<|channel|>final<|message|>" if format_.recipient else " to=user<|message|>"
            alternatives.append(f"{literal(answer)} {part}")
        elif format_.recipient:
            alternatives.append(f'( {literal("<|channel|>commentary")} )? " " calls')
        else:
            alternatives.append(f'" to=" /[^<]{{1,256}}/ {literal("<|message|>")} calls')
    start = format_.reasoning_start.removeprefix(format_.prefill)
    thinking = f"( {literal(start)} {until(format_.message_ends[0])} {literal(format_.prefill)} )?"
    text = f"start: {thinking} answer\nanswer: {' | '.join(alternatives)}\n{more}\n" + "\n".join(rules.values())
    check_grammar(text, "response_format" if not rules else "tools")
    return ConstraintSpec(kind="lark", source=text)


def _answer(wanted: ResponseFormat) -> str:
    """The start of a rule for the answer's text, its own rules on the lines after it; "" for any text."""
    match wanted.kind:
        case "text":
            return ""
        case "json_object":
            return json_rule({"type": "object"})
        case "json_schema":
            schema = wanted.source
            if isinstance(schema, str):
                try:
                    schema = json.loads(schema)
                except ValueError as exc:
                    raise InvalidRequest(f"The JSON schema is no JSON: {exc}.", param="response_format") from exc
            if not isinstance(schema, dict) and schema is not None and not hasattr(schema, "items"):
                raise InvalidRequest("A JSON schema is an object.", param="response_format.json_schema.schema")
            check_schema(dict(schema or {}), "response_format.json_schema.schema")
            return json_rule(dict(schema or {}))
        case "regex":
            if "\n" in str(wanted.source):
                raise InvalidRequest("A regex has to stand on one line.", hint="Write \\n.", param="response_format")
            return "/" + str(wanted.source).replace("\\/", "/").replace("/", "\\/") + "/"
        case "gbnf" | "lark":
            return _grammar_answer(str(wanted.source))
    raise Unsupported(f"response_format '{wanted.kind}' is not known.", param="response_format")


def _grammar_answer(source: str) -> str:
    """A client's grammar as rules of ours: its start rule becomes ours to name."""
    try:
        lark = any_to_lark(source)
    except Exception as exc:
        raise InvalidRequest(f"The grammar cannot be read: {exc}", param="grammar") from exc
    if not re.search(r"^\s*start\b.*:", lark, re.MULTILINE):
        raise InvalidRequest("The grammar has no start rule ('root' in GBNF, 'start' in Lark).", param="grammar")
    lark = re.sub(r"(?<![\w\"/])start(?![\w\"/])", "wanted_start", lark)
    return "wanted_start\n" + lark
