"""What LM Studio's v1 takes, field by field."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from lmd.api.body import Body

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Tokens = Annotated[int, Field(ge=16, le=16_777_216)]


class LoadBody(Body):
    model: Name
    context_length: Tokens | None = None
    eval_batch_size: Annotated[int, Field(ge=1, le=16384)] | None = None
    flash_attention: bool | None = None
    num_experts: Annotated[int, Field(ge=1)] | None = None
    offload_kv_cache_to_gpu: bool | None = None
    ttl: float | str | None = None
    echo_load_config: bool | None = None


class UnloadBody(Body):
    instance_id: Name


class DownloadBody(Body):
    model: Name
    quantization: Annotated[str, Field(min_length=1, max_length=64)] | None = None


class TextInput(Body):
    type: Literal["message", "text"]
    content: str


class ImageInput(Body):
    type: Literal["image"]
    data_url: str


Input = Annotated[TextInput | ImageInput, Field(discriminator="type")]


class ChatBody(Body):
    model: Name
    input: str | Annotated[list[Input], Field(min_length=1, max_length=1000)]
    system_prompt: str | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning: Literal["off", "low", "medium", "high", "on"] | None = None
    context_length: Tokens | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, Field(pattern="^resp_", max_length=128)] | None = None
    integrations: list[str | dict[str, JsonValue]] | None = None
    ttl: float | str | None = None
    preset: Name | None = None
