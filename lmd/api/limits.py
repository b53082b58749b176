"""How large a request may be, beside its body as a whole: ``[limits]``."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from lmd.config.settings import Limits
from lmd.errors import InvalidRequest
from lmd.generation import ChatPrompt, GenerationRequest, TextPart


def refuse_oversized(request: GenerationRequest, limits: Limits) -> None:
    """InvalidRequest names what is too much, and the setting that says so."""
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        for what, many, most in (("messages", prompt.messages, limits.messages), ("tools", prompt.tools, limits.tools)):
            if most and len(many) > most:
                raise _too_much(f"The request has {len(many)} {what}; at most {most} are taken.", what, what)
    for param, text in _texts(request):
        refuse_long_texts(param, (text,), limits)
    refuse_long_texts("stop", request.sampling.stop or (), limits)
    for param, schema in _schemas(request):
        if limits.schema_size and _bytes(_written(schema, param), limits.schema_size) > limits.schema_size:
            raise _too_much(f"'{param}' is larger than {limits.schema_size} bytes.", param, "schema_size")


def refuse_long_texts(param: str, texts: Iterable[str], limits: Limits) -> None:
    """As `refuse_oversized`, for texts that are no prompt: each may be as long as ``[limits] text_size``."""
    if limits.text_size and any(_bytes(text, limits.text_size) > limits.text_size for text in texts):
        raise _too_much(f"'{param}' is longer than {limits.text_size} bytes.", param, "text_size")


def _too_much(message: str, param: str, setting: str) -> InvalidRequest:
    return InvalidRequest(message, hint=f"[limits] {setting} says how much may be.", param=param)


def _bytes(text: str, limit: int) -> int:
    """The size in UTF-8, counted only where it matters."""
    return len(text) if len(text) > limit or 4 * len(text) <= limit else len(text.encode("utf-8", "surrogatepass"))


def _texts(request: GenerationRequest) -> Iterator[tuple[str, str]]:
    prompt = request.prompt
    if not isinstance(prompt, ChatPrompt):
        yield "prompt", prompt.text
        yield "suffix", prompt.suffix or ""
        return
    for number, message in enumerate(prompt.messages):
        for part in message.parts:
            if isinstance(part, TextPart):
                yield f"messages.{number}.content", part.text
        yield f"messages.{number}.reasoning", message.reasoning or ""
        for call in message.tool_calls:
            yield f"messages.{number}.tool_calls", call.arguments
    for number, tool in enumerate(prompt.tools):
        yield f"tools.{number}.function.description", tool.description


def _schemas(request: GenerationRequest) -> Iterator[tuple[str, Any]]:
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        for number, tool in enumerate(prompt.tools):
            if tool.parameters is not None:
                yield f"tools.{number}.function.parameters", tool.parameters
    if prompt.response_format.source is not None:
        yield "response_format", prompt.response_format.source


def _written(schema: Any, param: str) -> str:
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":"), default=str)
    except RecursionError:
        raise InvalidRequest(f"'{param}' is nested too deeply.", param=param) from None
