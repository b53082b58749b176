"""What Anthropic's endpoints answer."""

from typing import Any, Literal

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

_closed = with_config(ConfigDict(extra="forbid"))

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


@_closed
class Text(TypedDict):
    type: Literal["text"]
    text: str
    citations: None


@_closed
class Thinking(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: str


@_closed
class ToolUse(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Block = Text | Thinking | ToolUse


@_closed
class MessageUsage(TypedDict):
    """The prompt's tokens are the sum of the three kinds of input tokens."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


@_closed
class AnthropicMessage(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


@_closed
class TokenCount(TypedDict):
    input_tokens: int


@_closed
class AnthropicErrorBody(TypedDict):
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]
    message: str


@_closed
class AnthropicError(TypedDict):
    type: Literal["error"]
    error: AnthropicErrorBody
    request_id: str | None
