"""Find out what shape of messages a template wants, by rendering small conversations full of sentinels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from lmd.chat.shape import Shape
from lmd.errors import TemplateError

PROBE_TIME = datetime(2026, 1, 1, 12, 0, 0)

USER = "Quserq"
TEXT = "Qtextq"
NAME = "qname"
KEY = "qkey"
VALUE = "qvalue"
RESULT = "Qresultq"
THOUGHT = "Qthoughtq"
SYSTEM = "Qsystemq"

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Qdescriptionq",
        "parameters": {
            "type": "object",
            "properties": {KEY: {"type": "string", "description": "Qparameterq"}},
            "required": [KEY],
        },
    },
}


class Renders(Protocol):
    def render_raw(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        bos: str = "",
        eos: str = "",
        now: datetime,
        add_generation_prompt: bool = True,
        args: Mapping[str, Any] | None = None,
    ) -> str: ...

    def reasoning_args(self, effort: str | None) -> dict[str, Any]: ...


def rendered(
    template: Renders,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: bool | None = False,
    generation_prompt: bool = False,
    args: Mapping[str, Any] | None = None,
) -> str | None:
    """The text, or None where the template refuses. ``tools`` None: an empty list."""
    try:
        return template.render_raw(
            messages,
            [TOOL] if tools else None if tools is False else [],
            bos="<BOSq>",
            eos="<EOSq>",
            now=PROBE_TIME,
            add_generation_prompt=generation_prompt,
            args=args,
        )
    except TemplateError:
        return None


def _text(content: str, shape: Shape) -> Any:
    return content if shape.content == "text" else [{"type": "text", "text": content}]


def call(arguments: Any, *, id_: str = "callq0001", name: str = NAME) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def probe(template: Renders) -> Shape:
    """The `Shape` of a template. A template that refuses everything gets the default shape."""
    shape = Shape()
    if USER not in (rendered(template, [{"role": "user", "content": USER}]) or ""):
        parts = [{"role": "user", "content": [{"type": "text", "text": USER}]}]
        text = rendered(template, parts) or ""
        if USER in text and "'text'" not in text:
            shape = replace(shape, content="parts")
    user = {"role": "user", "content": _text(USER, shape)}
    answer = {"role": "assistant", "content": _text(TEXT, shape)}
    system = {"role": "system", "content": _text(SYSTEM, shape)}
    if rendered(template, [user]) is None and rendered(template, [user], tools=None) is not None:
        shape = replace(shape, empty_tools=True)
    no: bool | None = None if shape.empty_tools else False

    shape = replace(
        shape,
        system=SYSTEM in (rendered(template, [system, user], tools=no) or ""),
        system_anywhere=(rendered(template, [system, user, answer, system, user], tools=no) or "").count(SYSTEM) == 2,
        alternating=rendered(template, [user, user], tools=no) is None
        and rendered(template, [user, answer, user], tools=no) is not None,
        tools=NAME in (rendered(template, [user], tools=True) or ""),
    )
    if shape.tools and not _takes_open_types(template, user):
        shape = replace(shape, full_schemas=True)
    shape = _probe_calls(template, shape, user)
    shape = _probe_reasoning(template, shape, user)
    return _probe_results(template, shape, user)


def _takes_open_types(template: Renders, user: Mapping[str, Any]) -> bool:
    """Whether a parameter may be an object or array that does not say what it holds."""
    properties = {"qobject": {"type": "object"}, "qlist": {"type": "array"}}
    tool = {"type": "function", "function": {"name": NAME, "description": "Qdescriptionq",
            "parameters": {"type": "object", "properties": properties, "required": ["qobject"]}}}  # fmt: skip
    try:
        template.render_raw([user], [tool], now=PROBE_TIME)
    except TemplateError:
        return False
    return True


def _calls_shown(text: str | None) -> bool:
    return text is not None and all(word in text for word in (NAME, KEY, VALUE))


def _as_json_or_markup(text: str | None) -> bool:
    """False for an object that was printed as Python prints it (``{'qkey': …``), and for JSON text in JSON text."""
    return text is not None and f"'{KEY}'" not in text and f'\\"{KEY}' not in text


def _probe_calls(template: Renders, shape: Shape, user: Mapping[str, Any]) -> Shape:
    objects, text = {KEY: VALUE}, f'{{"{KEY}": "{VALUE}"}}'
    for id_, short in (("call_q00001", False), ("callq0001", True)):
        for kind, arguments in (("object", objects), ("text", text)):
            for content_kind, content in (("none", None), ("empty", ""), ("empty", _text("", shape))):
                turn = {"role": "assistant", "content": content, "tool_calls": [call(arguments, id_=id_)]}
                # Without tools first: a template may print the definitions as Python prints them.
                if any(_call_survives(template, shape, user, turn, tools) for tools in (False, True)):
                    beside = {**turn, "content": _text(TEXT, shape)}
                    shown = [rendered(template, [user, beside], tools=tools) or "" for tools in (False, True)]
                    return replace(
                        shape,
                        calls="tool_calls",
                        text_beside_calls=any(VALUE in out for out in shown),
                        arguments=kind,  # type: ignore[arg-type]  # mypy widens loop variables to str
                        call_content=content_kind,  # type: ignore[arg-type]  # the same
                        short_ids=short,
                    )
    return shape


def _call_survives(
    template: Renders, shape: Shape, user: Mapping[str, Any], turn: Mapping[str, Any], tools: bool
) -> bool:
    out = rendered(template, [user, turn], tools=tools)
    if not _calls_shown(out) or not _as_json_or_markup(out):
        return False
    plain = rendered(template, [user, {"role": "assistant", "content": _text("", shape)}], tools=tools) or ""
    return "None" not in (out or "") or "None" in plain


def _probe_reasoning(template: Renders, shape: Shape, user: Mapping[str, Any]) -> Shape:
    """Some templates show reasoning only beside calls, some only without: either counts."""
    calls: list[dict[str, Any]] = []
    if shape.calls:
        arguments: Any = {KEY: VALUE} if shape.arguments == "object" else f'{{"{KEY}": "{VALUE}"}}'
        calls = [call(arguments)]
    for field in ("reasoning_content", "reasoning", "thinking"):
        for turn in (
            {"role": "assistant", "content": _text(TEXT, shape), field: THOUGHT},
            {"role": "assistant", "content": _text("", shape), field: THOUGHT, "tool_calls": calls},
        ):
            for args in (None, template.reasoning_args("on")):
                if THOUGHT in (rendered(template, [user, turn], args=args) or ""):
                    # Where the template shows it only with thinking on, the format is read off with thinking on.
                    return replace(shape, reasoning=field, thinking_on=bool(args))
    parts = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": TEXT}]
    out = rendered(template, [user, {"role": "assistant", "content": parts}]) or ""
    if THOUGHT in out and "'thinking'" not in out and '"thinking"' not in out:
        return replace(shape, reasoning="parts")
    return shape


def _probe_results(template: Renders, shape: Shape, user: Mapping[str, Any]) -> Shape:
    if not shape.calls:
        result: dict[str, Any] = {"role": "tool", "content": RESULT, "name": NAME, "tool_call_id": "callq0001"}
        return replace(shape, results=RESULT in (rendered(template, [user, result]) or ""))
    arguments: Any = {KEY: VALUE} if shape.arguments == "object" else f'{{"{KEY}": "{VALUE}"}}'
    content = None if shape.call_content == "none" else ""
    turn = {"role": "assistant", "content": content, "tool_calls": [call(arguments)]}
    for kind, value in (("text", RESULT), ("parts", [{"type": "text", "text": RESULT}])):
        result = {"role": "tool", "content": value, "name": NAME, "tool_call_id": "callq0001"}
        out = rendered(template, [user, turn, result], tools=True) or ""
        if RESULT in out and "'text'" not in out:
            return replace(shape, results=True, result_content=kind)  # type: ignore[arg-type]  # str again
    return shape
