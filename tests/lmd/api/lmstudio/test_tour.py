"""Every endpoint of LM Studio's v0 and v1, held to schemas written from its documentation, not from our code."""

import json
from typing import Any

import openai
import pytest

from tests.conftest import MODELS
from tests.lmd.api.wire import (
    BOOLEAN,
    COUNT,
    NULL,
    SECONDS,
    SHARE,
    STRING,
    TEXT,
    Schema,
    any_of,
    array,
    ask,
    chunks,
    events,
    obj,
    one_of,
    valid,
)
from tests.models.bert_model import BertShape, bert_weights, wordpiece_vocabulary, write_bert

COUNT_TO_5 = "1, 2, 3, 4, 5."
FORMAT = one_of("gguf", "mlx")

# ── v0 ──

V0_MODEL = obj(
    {
        "id": TEXT, "object": one_of("model"), "type": one_of("llm", "vlm", "embeddings"), "publisher": STRING,
        "arch": TEXT, "compatibility_type": FORMAT, "quantization": TEXT, "state": one_of("loaded", "not-loaded"),
        "max_context_length": COUNT,
    },
    {"loaded_context_length": COUNT, "capabilities": array(TEXT)},
)  # fmt: skip
STOP_REASON = one_of(
    "eosFound", "stopStringFound", "maxPredictedTokensReached", "contextLengthReached", "toolCalls", "userStopped",
    "modelUnloaded", "failed",
)  # fmt: skip
MEASURED = {
    "stats": obj(
        {"tokens_per_second": SECONDS, "time_to_first_token": SECONDS, "generation_time": SECONDS,
         "stop_reason": STOP_REASON},
        {"draft_model": TEXT, "total_draft_tokens_count": COUNT, "accepted_draft_tokens_count": COUNT,
         "rejected_draft_tokens_count": COUNT, "ignored_draft_tokens_count": COUNT},
    ),
    "model_info": obj({"arch": TEXT, "quant": TEXT, "format": FORMAT, "context_length": COUNT}),
    "runtime": obj({"name": TEXT, "version": TEXT, "supported_formats": array(FORMAT)}),
}  # fmt: skip
USAGE = {
    "type": "object",
    "properties": {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT},
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
}


def v0_answer(kind: str, choice: Schema) -> Schema:
    return obj(
        {"id": TEXT, "object": one_of(kind), "created": COUNT, "model": TEXT, "choices": array(choice),
         "usage": USAGE, **MEASURED},
        {"system_fingerprint": TEXT},
    )  # fmt: skip


REASON = one_of("stop", "length", "tool_calls")
CALL = obj({"id": TEXT, "type": one_of("function"), "function": obj({"name": TEXT, "arguments": STRING})})
V0_CHAT = v0_answer(
    "chat.completion",
    obj({"index": COUNT, "logprobs": NULL, "finish_reason": REASON,
         "message": obj({"role": one_of("assistant"), "content": any_of(STRING, NULL)},
                        {"tool_calls": array(CALL)})}),
)  # fmt: skip
V0_TEXT = v0_answer("text_completion", obj({"index": COUNT, "logprobs": NULL, "finish_reason": REASON, "text": STRING}))


def v0_chunk(kind: str, said: Schema) -> Schema:
    """What a stream holds before its last chunk, which has more."""
    choice = obj({"index": COUNT, "finish_reason": any_of(REASON, NULL), **said}, {"logprobs": NULL})
    return obj(
        {"id": TEXT, "object": one_of(kind), "created": COUNT, "model": TEXT, "choices": array(choice)},
        {"system_fingerprint": TEXT, "usage": NULL},
    )


V0_CHAT_CHUNK = v0_chunk("chat.completion.chunk", {"delta": obj({}, {
    "role": one_of("assistant"), "content": any_of(STRING, NULL),
    "tool_calls": array(obj(
        {"index": COUNT, "function": obj({}, {"name": TEXT, "arguments": STRING})},
        {"id": TEXT, "type": one_of("function")},
    )),
})})  # fmt: skip
V0_TEXT_CHUNK = v0_chunk("text_completion", {"text": STRING})
V0_VECTORS = obj({
    "object": one_of("list"), "model": TEXT, **MEASURED,
    "data": array(obj({"object": one_of("embedding"), "index": COUNT, "embedding": array({"type": "number"})})),
    "usage": obj({"prompt_tokens": COUNT, "total_tokens": COUNT}),
})  # fmt: skip
V0_ERROR = obj({"error": obj(
    {"message": TEXT, "type": TEXT, "param": any_of(TEXT, NULL), "code": any_of(TEXT, NULL)},
)})  # fmt: skip

# ── v1 ──

EFFORT = one_of("off", "on", "low", "medium", "high")
CONFIG = obj(
    {"context_length": COUNT, "eval_batch_size": COUNT, "parallel": COUNT, "flash_attention": BOOLEAN,
     "offload_kv_cache_to_gpu": BOOLEAN},
    {"num_experts": COUNT},
)  # fmt: skip
ENCODER_CONFIG = obj({"context_length": COUNT})


def v1_model(kind: str, config: Schema, more: dict[str, Schema]) -> Schema:
    return obj(
        {
            "type": one_of(kind), "publisher": STRING, "key": TEXT, "display_name": TEXT,
            "size_bytes": COUNT, "params_string": TEXT, "max_context_length": COUNT,
            "quantization": obj({"name": TEXT, "bits_per_weight": SECONDS}), "format": FORMAT,
            "loaded_instances": array(obj({"id": TEXT, "config": config})), **more,
        },
        {"variants": array(TEXT), "selected_variant": TEXT},
    )  # fmt: skip


OF_LLM = {
    "architecture": TEXT, "description": any_of(TEXT, NULL),
    "capabilities": obj(
        {"vision": BOOLEAN, "trained_for_tool_use": BOOLEAN},
        {"reasoning": obj({"allowed_options": array(EFFORT), "default": EFFORT})},
    ),
}  # fmt: skip
V1_MODELS = obj({"models": array(any_of(v1_model("llm", CONFIG, OF_LLM), v1_model("embedding", ENCODER_CONFIG, {})))})


def loaded_as(kind: str, config: Schema) -> Schema:
    known = {"type": one_of(kind), "instance_id": TEXT, "load_time_seconds": SECONDS, "status": one_of("loaded")}
    return obj(known, {"load_config": config})


LOADED = loaded_as("llm", CONFIG)
CHAT = obj(
    {
        "model_instance_id": TEXT,
        "output": array(obj({"type": one_of("reasoning", "message"), "content": TEXT})),
        "stats": obj(
            {"input_tokens": COUNT, "total_output_tokens": COUNT, "reasoning_output_tokens": COUNT,
             "tokens_per_second": SECONDS, "time_to_first_token_seconds": SECONDS},
            {"model_load_time_seconds": SECONDS},
        ),
    },
    {"response_id": {"type": "string", "pattern": "^resp_."}},
)  # fmt: skip
ERROR = obj({"error": obj(
    {"message": TEXT, "type": one_of(
        "invalid_request", "unknown", "mcp_connection_error", "plugin_connection_error", "not_implemented",
        "model_not_found", "job_not_found", "internal_error",
    )},
    {"code": TEXT, "param": TEXT},
)})  # fmt: skip
OF_INSTANCE = {"model_instance_id": TEXT}
EVENTS = {
    "chat.start": OF_INSTANCE,
    "model_load.start": OF_INSTANCE,
    "model_load.progress": {**OF_INSTANCE, "progress": SHARE},
    "model_load.end": {**OF_INSTANCE, "load_time_seconds": SECONDS},
    "prompt_processing.start": {},
    "prompt_processing.progress": {"progress": SHARE},
    "prompt_processing.end": {},
    "reasoning.start": {},
    "reasoning.delta": {"content": TEXT},
    "reasoning.end": {},
    "message.start": {},
    "message.delta": {"content": TEXT},
    "message.end": {},
    "chat.end": {"result": CHAT},
}


@pytest.fixture(scope="module")
def url(start_daemon: Any, tmp_path_factory: Any) -> Any:
    """A daemon of its own: the tour loads and unloads."""
    words = wordpiece_vocabulary(["hello", "world"])
    encoder = tmp_path_factory.mktemp("tour") / "tiny-bert.gguf"
    write_bert(encoder, bert_weights(BertShape(), words.n_tokens), words, BertShape())
    models = [MODELS / "tiny-chat.gguf", MODELS / "tiny-draft.gguf", encoder]
    presets = {"counter": 'model = "tiny-chat"\n[sampling]\ntemperature = 0\n'}
    daemon = start_daemon(presets=presets, models=models)
    yield daemon.url
    daemon.stop()


def get(url: str, path: str, schema: Schema) -> Any:
    status, text = ask(url, "GET", path)
    assert status == 200
    return valid(json.loads(text), schema)


def post(url: str, path: str, body: Any, schema: Schema, status: int = 200) -> Any:
    got, text = ask(url, "POST", path, body)
    assert got == status, text
    return valid(json.loads(text), schema)


def chat(url: str, text: Any = "Count to 5.", **more: Any) -> Any:
    return post(url, "/api/v1/chat", {"model": "tiny-chat", "input": text, "temperature": 0, **more}, CHAT)


def streamed(url: str, **more: Any) -> list[tuple[str, Any]]:
    body = {"model": "tiny-chat", "input": "Count to 5.", "temperature": 0, "stream": True, **more}
    status, text = ask(url, "POST", "/api/v1/chat", body)
    assert status == 200
    found = events(text)
    for name, data in found:
        valid(data, obj({"type": one_of(name), **EVENTS[name]}))
    return found


def v0_stream(url: str, path: str, body: Any, schema: Schema, *, include_usage: bool = False) -> tuple[list[Any], Any]:
    """A stream's chunks and the last one, which alone has measures, and where it was asked for the usage."""
    more = {"stream": True, "stream_options": {"include_usage": include_usage}}
    status, text = ask(url, "POST", f"/api/v0/{path}", {**body, **more})
    assert status == 200
    *parts, last = chunks(text)
    for part in parts:
        valid(part, schema)
    valid({name: last[name] for name in MEASURED}, obj(MEASURED))
    plain = {name: value for name, value in last.items() if name not in MEASURED}
    valid({**plain, "usage": None} if include_usage else plain, schema)
    if include_usage:
        valid(last["usage"], USAGE)
    return parts, last


def said(answer: Any) -> str:
    return "".join(item["content"] for item in answer["output"] if item["type"] == "message")


def unload(url: str) -> None:
    """Whatever runs, so that a test begins without a model."""
    for model in get(url, "/api/v1/models", V1_MODELS)["models"]:
        for instance in model["loaded_instances"] if model["key"] != "counter" else []:
            post(url, "/api/v1/models/unload", {"instance_id": instance["id"]}, obj({"instance_id": TEXT}))


# ── v0 ────────────────────────────────────────────────────────────────────────────────────────


def test_the_greeting_is_lm_studios(url: str) -> None:
    assert get(url, "/lmstudio-greeting", {}) == {"lmstudio": True}


def test_v0_lists_models_with_state_and_capabilities(url: str) -> None:
    unload(url)
    schema = obj({"object": one_of("list"), "data": array(V0_MODEL)})
    models = {one["id"]: one for one in get(url, "/api/v0/models", schema)["data"]}
    assert set(models) == {"tiny-chat", "tiny-draft", "counter", "tiny-bert"}
    assert (models["tiny-bert"]["type"], models["tiny-bert"]["capabilities"]) == ("embeddings", [])
    assert (models["tiny-chat"]["state"], models["tiny-chat"]["capabilities"]) == ("not-loaded", ["tool_use"])
    post(url, "/api/v1/models/load", {"model": "tiny-chat", "context_length": 1024}, LOADED)
    one = get(url, "/api/v0/models/tiny-chat", V0_MODEL)
    assert (one["state"], one["loaded_context_length"], one["max_context_length"]) == ("loaded", 1024, 8192)
    assert one["quantization"] == "F16"


def test_v0_does_not_know_what_is_not_there(url: str) -> None:
    status, text = ask(url, "GET", "/api/v0/models/nothing")
    assert status == 404
    assert valid(json.loads(text), V0_ERROR)["error"]["code"] == "model_not_found"
    for path, body in (
        ("chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hello"}], "stream": True}),
        ("completions", {"prompt": "Hello"}),
        ("completions", {"prompt": "Hello", "stream": True}),
        ("embeddings", {"input": "Hello"}),
    ):
        error = post(url, f"/api/v0/{path}", {"model": "nothing", **body}, V0_ERROR, 404)["error"]
        assert error["code"] == "model_not_found"


def test_v0_chats_and_completions_are_measured(url: str) -> None:
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Count to 5."}], "temperature": 0}
    answer = post(url, "/api/v0/chat/completions", body, V0_CHAT)
    assert answer["choices"][0]["message"]["content"] == COUNT_TO_5
    assert answer["stats"]["stop_reason"] == "eosFound"
    cut = post(url, "/api/v0/chat/completions", {**body, "max_tokens": 2}, V0_CHAT)
    assert cut["stats"]["stop_reason"] == "maxPredictedTokensReached"
    text = {"model": "tiny-chat", "prompt": "<|im_start|>user\nCount to 5.<|im_end|>\n<|im_start|>assistant\n"}
    stopped = post(url, "/api/v0/completions", {**text, "stop": ", 4", "temperature": 0}, V0_TEXT)
    assert (stopped["choices"][0]["text"], stopped["stats"]["stop_reason"]) == ("1, 2, 3", "stopStringFound")


@pytest.mark.parametrize("include_usage", [False, True])
def test_v0_measures_ride_on_the_last_chunk(url: str, include_usage: bool) -> None:
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Count to 5."}], "temperature": 0, "n": 2}
    parts, last = v0_stream(url, "chat/completions", body, V0_CHAT_CHUNK, include_usage=include_usage)
    assert (last["choices"] == []) is include_usage
    told = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"][0]["index"])
    assert told == COUNT_TO_5


@pytest.mark.parametrize("include_usage", [False, True])
def test_v0_completions_stream_too(url: str, include_usage: bool) -> None:
    body = {"model": "tiny-chat", "prompt": "<|im_start|>user\nCount to 5.<|im_end|>\n<|im_start|>assistant\n",
            "temperature": 0}  # fmt: skip
    parts, last = v0_stream(url, "completions", body, V0_TEXT_CHUNK, include_usage=include_usage)
    assert "".join(part["choices"][0]["text"] for part in [*parts, last] if part["choices"]) == COUNT_TO_5
    assert last["stats"]["stop_reason"] == "eosFound"


def test_v0_tool_calls_are_a_reason_to_stop(url: str) -> None:
    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "get_weather", "description": "The weather in a city", "parameters": city}
    body = {"model": "tiny-chat", "temperature": 0, "tools": [{"type": "function", "function": tool}],
            "messages": [{"role": "user", "content": "What is the weather in Paris and Tokyo?"}]}  # fmt: skip
    answer = post(url, "/api/v0/chat/completions", body, V0_CHAT)
    assert (answer["stats"]["stop_reason"], len(answer["choices"][0]["message"]["tool_calls"])) == ("toolCalls", 2)
    _, last = v0_stream(url, "chat/completions", body, V0_CHAT_CHUNK)
    assert last["stats"]["stop_reason"] == "toolCalls"


def test_v0_embeddings_are_measured(url: str) -> None:
    body = {"model": "tiny-bert", "input": ["hello world", "world"]}
    answer = post(url, "/api/v0/embeddings", body, V0_VECTORS)
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert answer["stats"]["tokens_per_second"] > 0
    assert answer["model_info"]["arch"] == "bert"


def test_the_openai_client_works_with_v0_as_its_base(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/api/v0", api_key="none", max_retries=0)
    assert "tiny-chat" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tiny-chat").id == "tiny-chat"
    messages: Any = [{"role": "user", "content": "Count to 5."}]
    answer = client.chat.completions.create(model="tiny-chat", messages=messages, temperature=0)
    assert answer.choices[0].message.content == COUNT_TO_5
    stream = client.chat.completions.create(model="tiny-chat", messages=messages, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == COUNT_TO_5
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nothing", messages=messages)


# ── v1 models ─────────────────────────────────────────────────────────────────────────────────


def test_v1_loads_lists_and_unloads(url: str) -> None:
    unload(url)
    body = {"model": "tiny-chat", "context_length": 512, "eval_batch_size": 64, "flash_attention": False,
            "echo_load_config": True}  # fmt: skip
    loaded = post(url, "/api/v1/models/load", body, LOADED)
    config = loaded["load_config"]
    assert (config["context_length"], config["eval_batch_size"], config["flash_attention"]) == (512, 64, False)
    models = {one["key"]: one for one in get(url, "/api/v1/models", V1_MODELS)["models"]}
    tiny = models["tiny-chat"]
    assert tiny["loaded_instances"] == [{"id": loaded["instance_id"], "config": config}]
    assert tiny["capabilities"] == {
        "vision": False, "trained_for_tool_use": True,
        "reasoning": {"allowed_options": ["off", "on"], "default": "off"},
    }  # fmt: skip
    assert models["tiny-draft"]["loaded_instances"] == []
    assert post(url, "/api/v1/models/unload", {"instance_id": loaded["instance_id"]}, obj({"instance_id": TEXT})) == {
        "instance_id": loaded["instance_id"]
    }
    assert post(url, "/api/v1/models/load", {"model": "tiny-chat"}, LOADED).keys() == {
        "type", "instance_id", "load_time_seconds", "status",
    }  # fmt: skip


def test_v1_embedding_models_are_told_without_what_they_do_not_have(url: str) -> None:
    body = {"model": "tiny-bert", "echo_load_config": True}
    loaded = post(url, "/api/v1/models/load", body, loaded_as("embedding", ENCODER_CONFIG))
    models = {one["key"]: one for one in get(url, "/api/v1/models", V1_MODELS)["models"]}
    bert = models["tiny-bert"]
    assert bert["type"] == "embedding"
    assert bert["loaded_instances"] == [{"id": loaded["instance_id"], "config": loaded["load_config"]}]
    unload(url)


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("models/load", {"model": "nothing"},
         404, ("model_not_found", "model")),
        ("models/load", {"model": "tiny-chat", "context_length": "long"},
         400, ("invalid_request", "context_length")),
        ("models/unload", {"instance_id": "nothing"},
         404, ("model_not_found", None)),
        ("models/unload", {},
         400, ("invalid_request", "instance_id")),
        ("chat", {"model": "nothing", "input": "Hello"},
         404, ("model_not_found", "model")),
        ("chat", {"model": "tiny-chat"},
         400, ("invalid_request", "input")),
        ("chat", {"model": "tiny-chat", "input": [{"type": "smell", "content": ""}]},
         400, ("invalid_request", "input.0")),
        ("chat", {"model": "tiny-chat", "input": [{"type": "text"}]},
         400, ("invalid_request", "input.0.content")),
        ("chat", {"model": "tiny-chat", "input": "Hello", "integrations": ["mcp/x"]},
         400, ("not_implemented", "integrations")),
        ("chat", {"model": "tiny-chat", "input": "Hello", "reasoning": "high"},
         400, ("invalid_request", "reasoning")),
        ("chat", {"model": "tiny-chat", "input": "Hello", "previous_response_id": "resp_no"},
         404, ("invalid_request", "previous_response_id")),
        ("chat", {"model": "tiny-chat", "input": "Hello", "previous_response_id": "no"},
         400, ("invalid_request", "previous_response_id")),
        ("chat", {"model": "tiny-chat", "input": "Count to 20. " * 3000},
         400, ("invalid_request", "messages")),
    ],
)  # fmt: skip
def test_v1_refuses_in_its_own_shape(url: str, path: str, body: Any, status: int, expected: Any) -> None:
    for stream in ({}, {"stream": True}) if path == "chat" else ({},):
        error = post(url, f"/api/v1/{path}", {**body, **stream}, ERROR, status)["error"]
        assert (error["type"], error.get("param")) == expected


def test_an_image_is_refused_or_seen_but_never_ignored(url: str) -> None:
    image = {"type": "image", "data_url": "data:image/png;base64,iVBORw0KGgo="}
    body = {"model": "tiny-chat", "input": [{"type": "text", "content": "What is this?"}, image]}
    error = post(url, "/api/v1/chat", body, ERROR, 400)["error"]
    assert "mage" in error["message"]


def test_an_unknown_download_is_a_job_not_found(url: str) -> None:
    status, text = ask(url, "GET", "/api/v1/models/download/status/job_none")
    assert status == 404
    assert valid(json.loads(text), ERROR)["error"]["type"] == "job_not_found"


# ── v1 chat ───────────────────────────────────────────────────────────────────────────────────


def test_v1_answers(url: str) -> None:
    answer = chat(url)
    assert said(answer) == COUNT_TO_5
    assert answer["model_instance_id"] == "tiny-chat"
    assert answer["stats"]["total_output_tokens"] > answer["stats"]["reasoning_output_tokens"] == 0


def test_v1_tells_of_a_load_in_its_measures_and_its_events_once(url: str) -> None:
    unload(url)
    names = [name for name, _ in streamed(url)]
    assert names[:2] == ["chat.start", "model_load.start"]
    assert names.index("model_load.end") < names.index("prompt_processing.start")
    again = streamed(url)
    assert not any(name.startswith("model_load") for name, _ in again)
    assert "model_load_time_seconds" not in again[-1][1]["result"]["stats"]
    unload(url)
    assert chat(url)["stats"]["model_load_time_seconds"] > 0


def test_v1_streams_its_events_in_order_and_ends_with_the_whole_answer(url: str) -> None:
    chat(url)
    found = streamed(url, reasoning="on")
    order = list(dict.fromkeys(name for name, _ in found))
    assert order == [
        "chat.start", "prompt_processing.start", "prompt_processing.progress", "prompt_processing.end",
        "reasoning.start", "reasoning.delta", "reasoning.end", "message.start", "message.delta", "message.end",
        "chat.end",
    ]  # fmt: skip
    texts = {
        kind: "".join(data["content"] for name, data in found if name == f"{kind}.delta")
        for kind in ("reasoning", "message")
    }
    result = found[-1][1]["result"]
    assert result["output"] == [{"type": kind, "content": text} for kind, text in texts.items()]
    assert texts["message"] == COUNT_TO_5
    assert result["stats"]["reasoning_output_tokens"] > 0
    assert result["response_id"].startswith("resp_")


def test_v1_remembers_and_branches(url: str) -> None:
    grace = chat(url, "My name is Grace.")["response_id"]
    first = chat(url, "What is my name?", previous_response_id=grace)
    assert "Grace" in said(first)
    sibling = chat(url, "Hello", previous_response_id=grace)
    again = chat(url, "What is my name?", previous_response_id=grace)
    assert said(again) == said(first)
    # Neither branch has a part in the other, and each goes on from its own end.
    assert again["stats"]["input_tokens"] == first["stats"]["input_tokens"]
    deeper = chat(url, "What is my name?", previous_response_id=sibling["response_id"])
    assert "Grace" in said(deeper)
    assert deeper["stats"]["input_tokens"] > again["stats"]["input_tokens"]
    assert "Grace" not in said(chat(url, "What is my name?"))


def test_v1_keeps_nothing_where_it_is_asked_not_to(url: str) -> None:
    assert "response_id" not in chat(url, store=False)
    assert "response_id" not in streamed(url, store=False)[-1][1]["result"]


def test_v1_a_system_prompt_holds_for_what_continues_it(url: str) -> None:
    bob = chat(url, "Hello", system_prompt="Your name is Bob.")["response_id"]
    assert "Bob" in said(chat(url, "Who are you?", previous_response_id=bob))
    eve = chat(url, "Who are you?", previous_response_id=bob, system_prompt="Your name is Eve.")
    assert "Bob" not in said(eve)


def test_v1_takes_a_list_of_texts(url: str) -> None:
    items = [{"type": "text", "content": "Count to 5."}]
    assert said(chat(url, items)) == COUNT_TO_5


def test_v1_a_longer_context_is_loaded_where_what_runs_has_less(url: str) -> None:
    unload(url)
    post(url, "/api/v1/models/load", {"model": "tiny-chat", "context_length": 512}, LOADED)
    assert chat(url)["model_instance_id"] == "tiny-chat"
    longer = chat(url, context_length=2048)
    assert longer["model_instance_id"] != "tiny-chat"
    assert "model_load_time_seconds" in longer["stats"]
    assert chat(url, context_length=2048)["model_instance_id"] == longer["model_instance_id"]
    unload(url)


def test_v1_goes_on_with_a_conversation_after_a_restart(start_daemon: Any, tmp_path: Any) -> None:
    arguments = ["-o", f"paths.state={tmp_path}"]
    first = start_daemon(arguments=arguments)
    grace = chat(first.url, "My name is Grace.")["response_id"]
    assert first.stop() == 0
    second = start_daemon(arguments=arguments)
    assert "Grace" in said(chat(second.url, "What is my name?", previous_response_id=grace))
    assert second.stop() == 0
