"""What OpenAI's clients may send, field by field. Unknown fields are ignored; known ones must have their type."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from lmd.errors import InvalidRequest

MAX_MESSAGES = 10_000
MAX_TOOLS = 1_000
MAX_CHOICES = 128


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


Temperature = Annotated[float, Field(ge=0, le=5)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Limit = Annotated[int, Field(ge=-1)]
Stop = str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)]


class StreamOptions(_Body):
    include_usage: bool | None = None


class Sampled(_Body):
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


class ImageUrl(_Body):
    url: str


class TextContent(_Body):
    type: Literal["text"]
    text: str


class RefusalContent(_Body):
    type: Literal["refusal"]
    refusal: str


class ImageContent(_Body):
    type: Literal["image_url"]
    image_url: ImageUrl


Content = Annotated[TextContent | RefusalContent | ImageContent, Field(discriminator="type")]


class FunctionCall(_Body):
    name: Annotated[str, Field(min_length=1)]
    arguments: str = "{}"


class Call(_Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Content] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class Function(_Body):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class FunctionTool(_Body):
    type: Literal["function"]
    function: Function


class NamedFunction(_Body):
    name: Annotated[str, Field(min_length=1)]


class NamedTool(_Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Body):
    name: str | None = None
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(_Body):
    type: Literal["text"]


class JsonObjectFormat(_Body):
    type: Literal["json_object"]


class JsonSchemaFormat(_Body):
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


Read = TypeVar("Read", bound=BaseModel)


def read_body(kind: type[Read], raw: bytes) -> Read:
    """``raw`` JSON as a ``kind``. InvalidRequest names the first field that is wrong in ``param``."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _as_invalid_request(error) from None


def _as_invalid_request(error: ValidationError) -> InvalidRequest:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    # A union reports a problem for each of its members; the one that got deepest is the one that was meant.
    problem = max(problems, key=lambda one: len(_path(one["loc"])))
    if problem["type"] == "json_invalid":
        return InvalidRequest(f"The body is not JSON: {problem['msg'].removeprefix('Invalid JSON: ')}.")
    path = _path(problem["loc"])
    if not path:
        return InvalidRequest(f"The body is wrong: {problem['msg']}.")
    if problem["type"] == "missing":
        return InvalidRequest(f"'{'.'.join(path)}' is missing.", param=".".join(path))
    return InvalidRequest(f"'{'.'.join(path)}' is wrong: {problem['msg']}.", param=".".join(path))


#: Names that pydantic puts into a location for the members of a union: not fields of the request.
_UNION_TAGS = {"text", "refusal", "image_url", "json_object", "json_schema"}


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The request's own field names in a pydantic location, in order."""
    path: list[str] = []
    for index, step in enumerate(location):
        if isinstance(step, str):
            member_of_union = not step.replace("_", "").isalnum() or (step[:1].isupper() and index > 0)
            tagged = step in _UNION_TAGS and index + 1 < len(location) and index > 0
            if (
                member_of_union
                or step in {"str", "int", "float", "bool", "list"}
                or (tagged and _is_tag(location, index))
            ):
                continue
        path.append(str(step))
    return path


def _is_tag(location: tuple[int | str, ...], index: int) -> bool:
    """Whether ``location[index]`` is a discriminator's value: it then follows a list index or ``response_format``."""
    return isinstance(location[index - 1], int) or location[index - 1] == "response_format"
