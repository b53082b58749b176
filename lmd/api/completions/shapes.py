"""What chats and completions answer, for the OpenAPI document: `encode` writes these by hand, for speed."""

from typing import Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

_closed = with_config(ConfigDict(extra="forbid"))


@_closed
class ErrorBody(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


@_closed
class OpenAIError(TypedDict):
    error: ErrorBody


@_closed
class FunctionCall(TypedDict):
    name: str
    arguments: str


@_closed
class ToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


@_closed
class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


@_closed
class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


@_closed
class TokenLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


@_closed
class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]


FinishReason = Literal["stop", "length", "tool_calls"]


@_closed
class ChatChoice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


@_closed
class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


@_closed
class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


@_closed
class PromptDetails(TypedDict):
    cached_tokens: int


@_closed
class CompletionDetails(TypedDict):
    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


@_closed
class CompletionUsage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


@_closed
class Stats(TypedDict):
    """LM Studio's; the counters are there where a draft was used."""

    tokens_per_second: float
    time_to_first_token: float
    generation_time: float
    stop_reason: str
    draft_model: NotRequired[str]
    total_draft_tokens_count: NotRequired[int]
    accepted_draft_tokens_count: NotRequired[int]
    rejected_draft_tokens_count: NotRequired[int]
    ignored_draft_tokens_count: NotRequired[int]


@_closed
class ModelInfo(TypedDict):
    arch: str
    quant: str
    format: str
    context_length: int


@_closed
class Runtime(TypedDict):
    name: str
    version: str
    supported_formats: list[str]


@_closed
class ChatCompletion(TypedDict):
    """The last three fields are v0's."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    stats: NotRequired[Stats]
    model_info: NotRequired[ModelInfo]
    runtime: NotRequired[Runtime]


@_closed
class Completion(TypedDict):
    """The last three fields are v0's."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: CompletionUsage
    stats: NotRequired[Stats]
    model_info: NotRequired[ModelInfo]
    runtime: NotRequired[Runtime]


@_closed
class ListedModel(TypedDict):
    """``template``: whose chat template it gets; not of models that generate nothing.

    ``type``, ``display_name`` and ``created_at`` are what Anthropic's clients read.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    type: Literal["model"]
    display_name: str
    created_at: str
    template: NotRequired[Literal["own", "chatml"]]


@_closed
class ListedModels(TypedDict):
    object: Literal["list"]
    data: list[ListedModel]
