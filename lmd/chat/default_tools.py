"""Tools for models whose template does not show them: told in the system text, written back as text.

The markers are a `Format`'s: the model's own where its format is known although its template shows no calls, else
``[TOOL_REQUEST] … [END_TOOL_REQUEST]``.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from lmd.chat.formats import Format, Style
from lmd.chat.jsontext import dumps
from lmd.chat.shape import arguments_object, shaped_tools
from lmd.generation import ChatPrompt, Message, Role, TextPart, Tool, ToolCall

_ASK = """\
You can call functions. These are the functions, each with a JSON schema of its arguments:

{tools}

To call a function, write one block like this and nothing after it:
{example}
Use one such block for each call. Use only functions from the list, and give every required argument. \
The results come back in the next message. When no function helps, answer in plain text."""


def described(prompt: ChatPrompt, format_: Format, *, tools: bool, calls: bool, results: bool) -> ChatPrompt:
    """``prompt`` without what the template cannot show: tool definitions (``tools``), calls, results.

    Each flag says that the template does show it, so it is left as it is.
    """
    messages = list(prompt.messages)
    if not calls:
        messages = [_written(message, format_) if message.tool_calls else message for message in messages]
    if not results:
        messages = _as_user(messages)
    if tools or not prompt.tools:
        return replace(prompt, messages=tuple(messages))
    if prompt.tool_choice.mode != "none":
        messages = _with_system(messages, ask(prompt.tools, format_))
    return replace(prompt, messages=tuple(messages), tools=())


def ask(tools: Sequence[Tool], format_: Format) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in shaped_tools(tools))
    example = ToolCall(id="", name="NAME", arguments='{"ARGUMENT": "VALUE"}')
    return _ASK.format(tools=listed, example=written([example], format_))


def written(calls: Sequence[ToolCall], format_: Format) -> str:
    """Calls as the model would have written them (JSON and pythonic styles)."""
    if format_.style is Style.PYTHONIC:
        return f"{format_.section_start}[{', '.join(map(_pythonic, calls))}]{format_.section_end}"
    keys = format_.json
    objects = [
        dumps({keys.name or "name": call.name, keys.arguments or "arguments": arguments_object(call.arguments)})
        for call in calls
    ]
    if keys.array:
        return f"{format_.section_start}[{', '.join(objects)}]{format_.section_end}"
    return (format_.separator or "\n").join(f"{format_.call_start}{text}{format_.call_end}" for text in objects)


def _pythonic(call: ToolCall) -> str:
    arguments = arguments_object(call.arguments)
    pairs = arguments.items() if isinstance(arguments, dict) else ()
    return f"{call.name}({', '.join(f'{key}={dumps(value)}' for key, value in pairs)})"


def _written(message: Message, format_: Format) -> Message:
    lead = (TextPart("\n"),) if message.text else ()
    return replace(
        message, parts=(*message.parts, *lead, TextPart(written(message.tool_calls, format_))), tool_calls=()
    )


def _as_user(messages: Sequence[Message]) -> list[Message]:
    names = {call.id: call.name for message in messages for call in message.tool_calls}
    out: list[Message] = []
    follows_result = False
    for message in messages:
        if message.role is not Role.TOOL:
            out.append(message)
            follows_result = False
            continue
        name = message.name or names.get(message.tool_call_id or "", "")
        text = TextPart(f"[TOOL_RESULT{f' of {name}' if name else ''}]\n{message.text}\n[END_TOOL_RESULT]")
        if follows_result:
            out[-1] = replace(out[-1], parts=(*out[-1].parts, TextPart("\n"), text))
        else:
            out.append(Message(role=Role.USER, parts=(text,)))
        follows_result = True
    return out


def _with_system(messages: list[Message], text: str) -> list[Message]:
    if messages and messages[0].role in {Role.SYSTEM, Role.DEVELOPER}:
        head = messages[0]
        return [replace(head, parts=(*head.parts, TextPart("\n\n" + text))), *messages[1:]]
    return [Message(role=Role.SYSTEM, parts=(TextPart(text),)), *messages]
