"""Messages in the shape that one template wants.

Templates disagree on what a message looks like: content as a string or as parts, arguments as an object or as JSON
text, the name of the reasoning's field, whether there is a system role. A `Shape` holds those answers for
one template (`lmd.chat.probe` finds them out) and `shaped` applies them.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lmd.generation import Message, Role, TextPart, Tool, ToolCall

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one template wants to see. The defaults are what most take."""

    content: Literal["text", "parts"] = "text"
    result_content: Literal["text", "parts"] = "text"
    """Of ``tool`` messages."""
    arguments: Literal["object", "text"] = "object"
    call_content: Literal["none", "empty"] = "none"
    """What stands for content in an assistant's message that has only tool calls."""
    reasoning: Literal["reasoning_content", "reasoning", "thinking", "parts", "blocks", ""] = ""
    """The field that the template shows earlier reasoning from; "": none, and earlier reasoning is left out."""
    calls: Literal["tool_calls", "blocks", ""] = ""
    """Where the template reads tool calls: "" means that it shows none."""
    text_beside_calls: bool = True
    """False: the template shows no calls in a message that has text, so the text is left out."""
    system: bool = True
    """False: system text is put in front of the first user message."""
    system_anywhere: bool = True
    """False: later system messages join the first."""
    alternating: bool = False
    """Two messages of one role in a row are refused, so they are joined."""
    tools: bool = False
    """The template shows tool definitions."""
    results: bool = False
    """The template shows messages of role ``tool``."""
    thinking_on: bool = False
    """Earlier reasoning is shown only when thinking is switched on."""
    full_schemas: bool = False
    """Tool definitions must say what objects and arrays hold, and describe every parameter."""
    empty_tools: bool = False
    """Without tools the template wants an empty list and fails on none."""
    short_ids: bool = False
    """Call ids must be 9 letters and digits (Mistral)."""


def short_id(id_: str) -> str:
    """``id_`` as 9 letters and digits: itself where it is that already, else always the same for the same id."""
    if re.fullmatch(r"[A-Za-z0-9]{9}", id_):
        return id_
    return hashlib.sha256(id_.encode()).hexdigest()[:9]


def shaped(messages: Sequence[Message], shape: Shape) -> list[dict[str, Any]]:
    """The messages as the template is given them."""
    messages = [replace(m, role=Role.SYSTEM) if m.role is Role.DEVELOPER else m for m in messages]
    if not shape.system_anywhere or not shape.system:
        messages = _system_first(messages)
    if not shape.system:
        messages = _fold_system(messages)
    if shape.alternating:
        messages = _joined(messages)
    names = {call.id: call.name for m in messages for call in m.tool_calls}
    return [_message(m, shape, names) for m in messages]


def _full_schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_full_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    filled = {key: _full_schema(value) for key, value in schema.items()}
    if isinstance(properties := filled.get("properties"), dict):
        filled["properties"] = {
            key: {"description": "", **value} if isinstance(value, dict) else value for key, value in properties.items()
        }
    if filled.get("type") == "object" and not isinstance(filled.get("additionalProperties"), Mapping):
        filled["additionalProperties"] = {}
    if filled.get("type") == "array" and not isinstance(filled.get("items"), Mapping):
        filled["items"] = {}
    return filled


def shaped_tools(tools: Iterable[Tool], shape: Shape | None = None) -> list[dict[str, Any]]:
    """The definitions as the template is given them."""
    if shape is not None and shape.full_schemas:
        tools = [replace(tool, parameters=_full_schema(tool.parameters)) for tool in tools]
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": dict(NO_PARAMETERS if tool.parameters is None else tool.parameters),
            },
        }
        for tool in tools
    ]


def _system_first(messages: list[Message]) -> list[Message]:
    system = [m for m in messages if m.role is Role.SYSTEM]
    if not system:
        return messages
    return [_join_messages(system), *(m for m in messages if m.role is not Role.SYSTEM)]


def _fold_system(messages: list[Message]) -> list[Message]:
    if not messages or messages[0].role is not Role.SYSTEM:
        return messages
    system, rest = messages[0], messages[1:]
    for i, message in enumerate(rest):
        if message.role is Role.USER:
            folded = replace(message, parts=(*system.parts, TextPart("\n\n"), *message.parts))
            return [*rest[:i], folded, *rest[i + 1 :]]
    return [replace(system, role=Role.USER), *rest]


def _joined(messages: list[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.role is message.role
            and message.role in {Role.USER, Role.ASSISTANT, Role.SYSTEM}
            and not last.tool_calls
        ):
            joined[-1] = _join_messages([last, message])
        else:
            joined.append(message)
    return joined


def _join_messages(messages: Sequence[Message]) -> Message:
    parts = list(messages[0].parts)
    for message in messages[1:]:
        if parts and message.parts:
            parts.append(TextPart("\n\n"))
        parts.extend(message.parts)
    last = messages[-1]
    return replace(messages[0], parts=tuple(parts), reasoning=last.reasoning, tool_calls=last.tool_calls)


def _message(message: Message, shape: Shape, names: Mapping[str, str]) -> dict[str, Any]:
    out: dict[str, Any] = {"role": str(message.role)}
    if message.name is not None:
        out["name"] = message.name
    calls = message.tool_calls if shape.calls else ()
    wants = shape.result_content if message.role is Role.TOOL else shape.content
    if message.role is Role.ASSISTANT and "blocks" in {shape.calls, shape.reasoning}:
        out["content"] = _blocks(message, shape)
        return out
    if wants == "parts":
        out["content"] = [{"type": "text", "text": part.text} for part in message.parts if isinstance(part, TextPart)]
    else:
        out["content"] = message.text
    if message.role is Role.ASSISTANT:
        if message.reasoning and shape.reasoning == "parts":
            text = [{"type": "text", "text": message.text}] if message.text else []
            out["content"] = [{"type": "thinking", "thinking": message.reasoning}, *text]
        elif message.reasoning and shape.reasoning:
            out[shape.reasoning] = message.reasoning
        if calls:
            if (
                (not message.text or not shape.text_beside_calls)
                and wants == "text"
                and not isinstance(out["content"], list)
            ):
                out["content"] = None if shape.call_content == "none" else ""
            out["tool_calls"] = [_call(call, shape) for call in calls]
    if message.role is Role.TOOL and message.tool_call_id is not None:
        id_ = message.tool_call_id
        out["tool_call_id"] = short_id(id_) if shape.short_ids else id_
        if message.name is None and id_ in names:
            out["name"] = names[id_]
    return out


def arguments_object(arguments: str) -> Any:
    """The arguments as a value; text that is no JSON stays text, so that a template shows what the client sent."""
    if not arguments.strip():
        return {}
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _call(call: ToolCall, shape: Shape) -> dict[str, Any]:
    arguments = arguments_object(call.arguments) if shape.arguments == "object" else (call.arguments or "{}")
    id_ = short_id(call.id) if shape.short_ids else call.id
    return {"id": id_, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _blocks(message: Message, shape: Shape) -> dict[str, Any]:
    """Apertus: one message is a list of typed blocks."""
    blocks: list[dict[str, Any]] = []
    if message.reasoning and shape.reasoning == "blocks":
        blocks.append({"type": "thoughts", "text": message.reasoning})
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": call.arguments or "{}"} for call in message.tool_calls]
        if message.text:
            blocks.append({"type": "response", "text": message.text})
        blocks.append({"type": "tool_calls", "calls": calls})
    elif message.text:
        blocks.append({"type": "response", "text": message.text})
    return {"blocks": blocks}
