"""What a turn's answer must be: from tools, tool_choice and response_format to one grammar.

The grammar is checked here, so that what cannot be enforced is refused before any token is made.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmd.chat.formats import Format
from lmd.chat.grammar import CallGrammar, json_rule, literal, object_schema, until
from lmd.chat.schema import check_grammar, check_schema
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import ResponseFormat, Tool, ToolChoice

ANY = r"/(.|\n)*/"
_SLASHES = re.compile(r"\\.|/|\n", re.DOTALL)
_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/(?:[^/\\\n]|\\.)+/|\w+')
"""Strings, comments, regexes and names of a Lark grammar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintSpec:
    """As `worker.messages.Constraint` takes it. ``triggers``: free until one of them, then held from its start on.

    Every call that the answer can contain satisfies its schema, so arguments may be given out as they come.
    """

    kind: str
    source: str
    triggers: tuple[str, ...] = ()


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
        return _held(format_, reasoning_open, answer=answer) if answer else None
    grammar = CallGrammar(format_, tools, many=parallel and mode != "named")
    if mode == "auto" and not answer:
        if format_.opens_calls:
            return _lazy(format_, grammar.rules(loose=True))
        return _held(format_, reasoning_open, answer=_any_text(format_, tools), calls=grammar.rules(), preamble=True)
    return _held(format_, reasoning_open, answer=answer if mode == "auto" else "", calls=grammar.rules())


def _lazy(format_: Format, rules: str) -> ConstraintSpec:
    """Free until the model opens a call, in its reasoning too: a call may end that."""
    source = "start: lmd_calls\n" + rules
    check_grammar(source, "tools")
    return ConstraintSpec(kind="lark", source=source, triggers=format_.triggers)


def _any_text(format_: Format, tools: Sequence[Tool]) -> str:
    """As `_answer`: any text but one that begins like a call which no marker of its own opens."""
    if format_.header is not None:
        return f"LMD_TEXT\nLMD_TEXT: {ANY}"
    if format_.prefill:
        before = _without("(.|\\n)*" + _escaped(format_.call_start))
        return f"LMD_TEXT | {until(format_.call_start)} lmd_calls\nLMD_TEXT: {before}"
    keys = format_.json
    names = [keys.wrapper or (keys.id if keys.id_first else keys.name)]
    if not names[0]:
        names = [tool.name for tool in tools]
    begun = _without(r'\s*\{\s*"(' + "|".join(map(_escaped, names)) + r')"\s*:')
    return f"LMD_TEXT\nLMD_TEXT: {begun}"


def _without(start: str) -> str:
    """Any text that does not begin with what the regex ``start`` matches."""
    return f"{ANY} & ~/{start}(.|\\n)*/"


def _escaped(text: str) -> str:
    """``text`` as part of a regex between slashes."""
    return re.sub(r"\W", lambda match: f"\\x{{{ord(match.group()):x}}}", text)


def _held(
    format_: Format, reasoning_open: bool, *, answer: str = "", calls: str = "", preamble: bool = False
) -> ConstraintSpec:
    """Calls (their rules) or ``answer`` from the first token, after a reasoning block where there may be one."""
    head, _, more = answer.partition("\n")
    rules = f"{more}\n{calls}"
    triggers: tuple[str, ...] = ()
    if format_.header is not None:
        start = _in_channels(format_, head, calls=bool(calls), preamble=preamble)
    else:
        alternatives = [_after_empty_text(format_, "lmd_calls")] if calls else []
        alternatives += [_wrapped(format_, head)] if answer else []
        start = f"lmd_answer\nlmd_answer: {' | '.join(alternatives)}"
        end = literal(format_.reasoning_end)
        if reasoning_open and format_.reasoning:
            triggers = (format_.reasoning_end.strip(),)
            start = f"{end} LMD_BLANKS {start}"
            if calls and format_.opens_calls:
                # The model may end its reasoning by calling.
                triggers += format_.triggers
                start = f"lmd_calls | {start}"
        elif format_.reasoning and format_.reasoning_start:
            block = f"{literal(format_.reasoning_start)} {until(format_.reasoning_end.strip())}"
            # Some templates write the end of a block that is empty without its start.
            start = f"( ( {block} | {end} ) LMD_BLANKS )? {start}"
        if "LMD_BLANKS" in start:
            rules += "\nLMD_BLANKS: /\\n{0,3}/\n"
    source = f"start: {start}\n{rules}"
    check_grammar(source, "tools" if calls else "response_format")
    return ConstraintSpec(kind="lark", source=source, triggers=triggers)


def _after_empty_text(format_: Format, calls: str) -> str:
    """``calls``, where a template writes the markers of the answer's text also around none (Kimi K3, GigaChat)."""
    if format_.prefill or not format_.text_closings:
        return calls
    around = (*format_.text_openings[:1], format_.text_closings[0])
    return f"( {' '.join(map(literal, around))} LMD_BLANKS )? {calls}"


def _wrapped(format_: Format, answer: str) -> str:
    """``answer`` between the markers that the model may write around it, or has to where the prompt began one."""
    terms = []
    if format_.text_openings:
        openings = " | ".join(literal(opening.removeprefix(format_.prefill)) for opening in format_.text_openings)
        terms.append(f"( {openings} )" + ("" if format_.prefill else "?"))
    if format_.text_start:
        terms.append(f"( {literal(format_.text_start)} )?")
    terms.append(f"( {answer} )")
    terms += [f"( {literal(closing)} )?" for closing in format_.text_closings]
    return " ".join(terms)


def _in_channels(format_: Format, head: str, *, calls: bool, preamble: bool) -> str:
    """Messages in channels: reasoning in its own, then calls, or the answer in the channel for answers.

    ``preamble``: text for the user may stand in a channel of its own before a call.
    """
    alternatives = []
    if head:
        opening = "<|channel|>final<|message|>" if format_.recipient else " to=user<|message|>"
        alternatives.append(f"{literal(opening)} {head}")
    if calls and format_.recipient:
        alternatives.append(f'( {literal("<|channel|>commentary")} )? " " lmd_calls')
    elif calls:
        alternatives.append(f'" to=" /[^<]{{1,256}}/ {literal("<|message|>")} lmd_calls')
    body = f"{until(format_.message_ends[0])} {literal(format_.prefill)}"
    before = f"( {literal(format_.reasoning_start.removeprefix(format_.prefill))} {body} )?"
    if preamble:
        before += f" ( {literal('<|channel|>commentary<|message|>')} {body} )?"
    return f"{before} lmd_answer\nlmd_answer: {' | '.join(alternatives)}"


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
            return f"/{_SLASHES.sub(_harmless, str(wanted.source)) or '()'}/"
        case "gbnf" | "lark":
            return _grammar_answer(str(wanted.source))
    raise Unsupported(f"response_format '{wanted.kind}' is not known.", param="response_format")


def _grammar_answer(source: str) -> str:
    """A client's grammar as rules of ours: its start rule becomes ours to name."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        lark = any_to_lark(source)
    except Exception as exc:
        raise InvalidRequest(f"The grammar cannot be read: {exc}", param="grammar") from exc
    if not re.search(r"^\s*start\b.*:", lark, re.MULTILINE):
        raise InvalidRequest("The grammar has no start rule ('root' in GBNF, 'start' in Lark).", param="grammar")
    return "lmd_wanted\n" + _WORDS.sub(lambda match: "lmd_wanted" if match.group() == "start" else match.group(), lark)


def _harmless(match: re.Match[str]) -> str:
    """What would end a regex between slashes, written another way."""
    return {"/": r"\x2f", "\\/": r"\x2f", "\n": r"\n", "\\\n": r"\n"}.get(match.group(), match.group())
