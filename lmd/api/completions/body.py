"""What OpenAI's clients may send, field by field."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from lmd.api.body import Body
from lmd.generation import ContextOverflow

MAX_MESSAGES = 10_000
MAX_TOOLS = 1_000
MAX_CHOICES = 128


Temperature = Annotated[float, Field(ge=0, le=5)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Limit = Annotated[int, Field(ge=-1)]
Stop = str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)]


class StreamOptions(Body):
    include_usage: bool | None = None


class Sampled(Body):
    """What chats and plain completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: Stop | None = None
    max_tokens: Limit | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ttl: float | str | None = None
    preset: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    draft_model: str | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    grammar: str | None = None
    regex: str | None = None
    # What llama-server and LM Studio have beyond OpenAI; the meanings and bounds are those of SamplingParams.
    context_overflow: ContextOverflow | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=65536)] | None = None
    typical_p: Probability | None = None
    top_n_sigma: Annotated[float, Field(ge=0)] | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    dynatemp_range: Temperature | None = None
    dynatemp_exponent: Annotated[float, Field(gt=0)] | None = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(gt=0)] | None = None
    mirostat_eta: Annotated[float, Field(gt=0, le=1)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0)] | None = None
    dry_base: Annotated[float, Field(ge=1)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=65536)] | None = None
    dry_sequence_breakers: Annotated[list[str], Field(max_length=64)] | None = None


#: The fields of `Sampled` that `SamplingParams` takes as they are, under the same names.
FURTHER_SAMPLING = (
    "context_overflow",
    "repeat_last_n",
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dynatemp_range",
    "dynatemp_exponent",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
)


class ImageUrl(Body):
    url: str


class TextContent(Body):
    type: Literal["text"]
    text: str


class RefusalContent(Body):
    type: Literal["refusal"]
    refusal: str


class ImageContent(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


Content = Annotated[TextContent | RefusalContent | ImageContent, Field(discriminator="type")]


class FunctionCall(Body):
    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class Call(Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Content] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class Function(Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: Annotated[str, Field(min_length=1)]


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: str | None = None
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatBody(Sampled):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionBody(Sampled):
    prompt: str | Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
