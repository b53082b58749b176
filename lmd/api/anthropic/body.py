"""What Anthropic's clients may send, field by field."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from lmd.api.body import Body

MAX_MESSAGES = 100_000
MAX_TOOLS = 1_000

Name = Annotated[str, Field(min_length=1, max_length=1024)]


class TextBlock(Body):
    type: Literal["text"]
    text: str


class Base64Source(Body):
    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Body):
    type: Literal["url"]
    url: str


class FileSource(Body):
    type: Literal["file"]
    file_id: str


class TextSource(Body):
    type: Literal["text"]
    data: str


class ImageBlock(Body):
    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type")]


class DocumentBlock(Body):
    type: Literal["document"]
    source: Annotated[TextSource | Base64Source | UrlSource | FileSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: Name
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: dict[str, JsonValue]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: Name
    content: str | list[Annotated[TextBlock | ImageBlock | DocumentBlock, Field(discriminator="type")]] | None = None
    is_error: bool | None = None


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Body):
    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    TextBlock | ImageBlock | DocumentBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock,
    Field(discriminator="type"),
]


class InMessage(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Body):
    """A client's tool: ``type`` is "custom" or left out. Server tools have other types."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    input_schema: dict[str, JsonValue]
    strict: bool | None = None


class ServerTool(Body):
    type: Annotated[str, Field(min_length=1)]
    name: str | None = None


def _kind_of_tool(said: object) -> str:
    kind = said.get("type") if isinstance(said, dict) else getattr(said, "type", None)
    return "client" if kind in {None, "custom"} or not isinstance(kind, str) else "server"


AnyTool = Annotated[Annotated[Tool, Tag("client")] | Annotated[ServerTool, Tag("server")], Discriminator(_kind_of_tool)]


class Choice(Body):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Body):
    type: Literal["tool"]
    name: Name
    disable_parallel_tool_use: bool | None = None


class ThinkingOn(Body):
    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Body):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingOff(Body):
    type: Literal["disabled", "between_tools"]


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, JsonValue] = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Conversation(Body):
    """What counting and answering have in common."""

    model: Name
    messages: Annotated[list[InMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Annotated[Choice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[ThinkingOn | ThinkingAdaptive | ThinkingOff, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    preset: Name | None = None
    ttl: float | str | None = None


class MessagesBody(Conversation):
    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None


class CountBody(Conversation):
    pass
