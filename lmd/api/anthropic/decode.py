"""Anthropic's bodies to `GenerationRequest`. Pure: bytes in, values out, InvalidRequest on what cannot be served."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from lmd.api.anthropic import body as wire
from lmd.api.body import read_body
from lmd.api.data_url import base64_of, image_of
from lmd.api.ttl import ttl_of
from lmd.api.unsupported import refuse_unsupported
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import (
    ChatPrompt,
    GenerationRequest,
    ImagePart,
    Message,
    Part,
    ResponseFormat,
    Role,
    SamplingParams,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)


@dataclass(frozen=True, slots=True)
class Decoded:
    request: GenerationRequest
    stream: bool
    show_thinking: bool
    """False: blocks of thinking go out without their text ("display": "omitted")."""


def decode_messages(raw: bytes) -> Decoded:
    said = read_body(wire.MessagesBody, raw)
    thinking = said.thinking
    sampling = SamplingParams(
        temperature=said.temperature,
        # 0 keeps the likeliest token alone, as any value below its probability does.
        top_p=None if said.top_p is None else max(said.top_p, 1e-9),
        top_k=said.top_k,
        max_tokens=min(said.max_tokens, 2**31 - 1),
        stop=tuple(said.stop_sequences) if said.stop_sequences else None,
    )
    omitted = isinstance(thinking, wire.ThinkingOn | wire.ThinkingAdaptive) and thinking.display == "omitted"
    return Decoded(_request(said, sampling), bool(said.stream), not omitted)


def decode_count(raw: bytes) -> GenerationRequest:
    return _request(read_body(wire.CountBody, raw), SamplingParams())


def _request(said: wire.Conversation, sampling: SamplingParams) -> GenerationRequest:
    choice = said.tool_choice
    wanted = said.output_config.format if said.output_config is not None else None
    request = GenerationRequest(
        model=said.model,
        prompt=ChatPrompt(
            messages=tuple(_messages(said)),
            tools=tuple(_tool(tool, index) for index, tool in enumerate(said.tools or ())),
            tool_choice=_tool_choice(said),
            parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
            response_format=ResponseFormat()
            if wanted is None
            else ResponseFormat(kind="json_schema", source=wanted.schema_, strict=True),
            reasoning_effort=_effort(said),
        ),
        sampling=sampling,
        preset=said.preset,
        ttl=ttl_of(said.ttl),
    )
    refuse_unsupported(request)
    return request


def _effort(said: wire.Conversation) -> str | None:
    """None: the preset and the model decide. A budget counts as "on": how long a model thinks is its own affair."""
    match said.thinking:
        case wire.ThinkingOff():
            return "off"
        case wire.ThinkingOn():
            return "on"
    effort = said.output_config.effort if said.output_config is not None else None
    if effort is not None:
        return "high" if effort in {"xhigh", "max"} else effort
    return "on" if said.thinking is not None else None


def _tool(said: wire.Tool | wire.ServerTool, index: int) -> Tool:
    if isinstance(said, wire.ServerTool):
        raise Unsupported(
            f"Tools that the server runs ('{said.type[:100]}') are not implemented in this version of lmd.",
            hint="Offer tools with an input_schema, and run them yourself.",
            param=f"tools.{index}.type",
        )
    return Tool(
        name=said.name,
        description=said.description or "",
        parameters=said.input_schema,
        strict=bool(said.strict),
    )


def _tool_choice(said: wire.Conversation) -> ToolChoice:
    choice = said.tool_choice
    if choice is None or choice.type == "auto":
        return ToolChoice()
    if choice.type == "none":
        return ToolChoice("none")
    if not said.tools:
        raise InvalidRequest("'tool_choice' asks for a call, but there are no 'tools'.", param="tool_choice")
    if choice.type == "any":
        return ToolChoice("required")
    if all(tool.name != choice.name for tool in said.tools):
        raise InvalidRequest(f"'tool_choice' names '{choice.name}', which is not in 'tools'.", param="tool_choice.name")
    return ToolChoice("named", choice.name)


# ── messages ──────────────────────────────────────────────────────────────────────────────────


def _messages(said: wire.Conversation) -> Iterable[Message]:
    if said.system:
        text = said.system if isinstance(said.system, str) else "\n\n".join(block.text for block in said.system)
        yield Message(role=Role.SYSTEM, parts=(TextPart(text),))
    for index, message in enumerate(said.messages):
        where = f"messages.{index}"
        if isinstance(message.content, str):
            yield Message(role=Role(message.role), parts=(TextPart(message.content),))
        elif message.role == "assistant":
            yield _assistant(message.content, where)
        else:
            yield from _user(message.content, message.role, where)
    if said.messages[-1].role == "assistant":
        raise Unsupported(
            "A conversation that ends with the assistant's own words (prefill) is not implemented in this version "
            "of lmd.",
            hint="End it with a user message.",
            param=f"messages.{len(said.messages) - 1}.role",
        )


def _assistant(blocks: Sequence[wire.Block], where: str) -> Message:
    parts: list[Part] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(blocks):
        match block:
            case wire.TextBlock():
                parts.append(TextPart(block.text))
            case wire.ThinkingBlock():
                reasoning.append(block.thinking)
            case wire.RedactedThinkingBlock():
                continue  # no other server's secrets can be read here, and none are written
            case wire.ToolUseBlock():
                arguments = msgspec.json.encode(block.input).decode()
                calls.append(ToolCall(id=block.id, name=block.name, arguments=arguments))
            case _:
                raise _misplaced(block.type, "assistant", f"{where}.content.{index}")
    return Message(
        role=Role.ASSISTANT, parts=tuple(parts), reasoning="\n".join(reasoning) or None, tool_calls=tuple(calls)
    )


def _user(blocks: Sequence[wire.Block], role: Literal["user", "system"], where: str) -> Iterable[Message]:
    """A message for each tool result, and one for each stretch of other blocks, in their order."""
    parts: list[Part] = []

    def stretch() -> Iterable[Message]:
        if parts:
            yield Message(role=Role(role), parts=tuple(parts))
            parts.clear()

    for index, block in enumerate(blocks):
        here = f"{where}.content.{index}"
        match block:
            case wire.TextBlock() | wire.ImageBlock() | wire.DocumentBlock():
                parts.append(_part(block, here))
            case wire.ToolResultBlock() if role == "user":
                yield from stretch()
                yield _result(block, here)
            case _:
                raise _misplaced(block.type, role, here)
    yield from stretch()


def _result(block: wire.ToolResultBlock, where: str) -> Message:
    parts: list[Part] = []
    if isinstance(block.content, str):
        parts.append(TextPart(block.content))
    else:
        parts += [_part(one, f"{where}.content.{index}") for index, one in enumerate(block.content or ())]
    if block.is_error:
        # Templates know no failed results: the model is told in words.
        parts.insert(0, TextPart("Error: " if parts else "Error"))
    return Message(role=Role.TOOL, parts=tuple(parts), tool_call_id=block.tool_use_id)


def _part(block: wire.TextBlock | wire.ImageBlock | wire.DocumentBlock, where: str) -> Part:
    match block:
        case wire.TextBlock():
            return TextPart(block.text)
        case wire.ImageBlock(source=wire.Base64Source() as source):
            return ImagePart(base64_of(source.data, f"{where}.source.data"), source.media_type)
        case wire.ImageBlock(source=wire.UrlSource() as source):
            return image_of(source.url, f"{where}.source.url")
        case wire.DocumentBlock(source=wire.TextSource() as source):
            return TextPart("\n".join(text for text in (block.title, block.context, source.data) if text))
    raise Unsupported(
        f"{block.type.capitalize()}s of the type '{block.source.type}' are not implemented in this version of lmd.",
        hint="Send documents as text, images as base64.",
        param=f"{where}.source",
    )


def _misplaced(kind: str, role: str, where: str) -> InvalidRequest:
    return InvalidRequest(f"A '{kind}' block cannot stand in a message of the role '{role}'.", param=where)
