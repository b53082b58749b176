"""What LM Studio's own endpoints answer. Sizes in bytes, lengths in tokens, times in seconds, moments in ISO 8601."""

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

_closed = with_config(ConfigDict(extra="forbid"))

Effort = Literal["off", "on", "low", "medium", "high"]

# ── v0 ────────────────────────────────────────────────────────────────────────────────────────


@_closed
class V0Model(TypedDict):
    id: str
    object: Literal["model"]
    type: Literal["llm", "vlm", "embeddings"]
    publisher: str
    arch: str
    compatibility_type: Literal["gguf", "mlx"]
    quantization: str
    state: Literal["loaded", "not-loaded"]
    max_context_length: int
    loaded_context_length: NotRequired[int]
    capabilities: list[str]


@_closed
class V0Models(TypedDict):
    object: Literal["list"]
    data: list[V0Model]


# ── v1 models ─────────────────────────────────────────────────────────────────────────────────


@_closed
class Quantization(TypedDict):
    name: str | None
    bits_per_weight: float | None


@_closed
class Config(TypedDict):
    """An embedding model has the first alone."""

    context_length: int
    eval_batch_size: NotRequired[int]
    parallel: NotRequired[int]
    flash_attention: NotRequired[bool]
    num_experts: NotRequired[int]
    offload_kv_cache_to_gpu: NotRequired[bool]


@_closed
class LoadedInstance(TypedDict):
    id: str
    config: Config


@_closed
class Reasoning(TypedDict):
    allowed_options: list[Effort]
    default: Effort


@_closed
class Capabilities(TypedDict):
    vision: bool
    trained_for_tool_use: bool
    reasoning: NotRequired[Reasoning]


@_closed
class V1Model(TypedDict):
    type: Literal["llm", "embedding"]
    publisher: str
    key: str
    display_name: str
    architecture: NotRequired[str | None]
    quantization: Quantization | None
    size_bytes: int
    params_string: str | None
    loaded_instances: list[LoadedInstance]
    max_context_length: int
    format: Literal["gguf", "mlx"] | None
    capabilities: NotRequired[Capabilities]
    description: NotRequired[str | None]


@_closed
class V1Models(TypedDict):
    models: list[V1Model]


@_closed
class Loaded(TypedDict):
    type: Literal["llm", "embedding"]
    instance_id: str
    load_time_seconds: float
    status: Literal["loaded"]
    load_config: NotRequired[Config]


@_closed
class Unloaded(TypedDict):
    instance_id: str


@_closed
class DownloadJob(TypedDict):
    job_id: NotRequired[str]
    status: Literal["downloading", "paused", "completed", "failed", "already_downloaded"]
    total_size_bytes: NotRequired[int]
    downloaded_bytes: NotRequired[int]
    bytes_per_second: NotRequired[float]
    estimated_completion: NotRequired[str]
    started_at: NotRequired[str]
    completed_at: NotRequired[str]


# ── v1 chat ───────────────────────────────────────────────────────────────────────────────────


@_closed
class OutputItem(TypedDict):
    type: Literal["reasoning", "message"]
    content: str


@_closed
class ChatStats(TypedDict):
    input_tokens: int
    total_output_tokens: int
    reasoning_output_tokens: int
    tokens_per_second: float
    time_to_first_token_seconds: float
    model_load_time_seconds: NotRequired[float]


@_closed
class ChatResult(TypedDict):
    model_instance_id: str
    output: list[OutputItem]
    stats: ChatStats
    response_id: NotRequired[str]


@_closed
class ErrorBody(TypedDict):
    type: Literal["invalid_request", "unknown", "not_implemented", "model_not_found", "job_not_found", "internal_error"]
    message: str
    code: NotRequired[str]
    param: NotRequired[str]


@_closed
class Error(TypedDict):
    error: ErrorBody


@_closed
class Greeting(TypedDict):
    lmstudio: Literal[True]


Event = dict[str, Any]
"""Data of one event of a streamed chat: its ``type``, and what that type has."""
