"""Every wrong field of a body is named in ``param``."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.api.body import read_body
from lmd.api.completions.body import ChatBody, CompletionBody
from lmd.errors import InvalidRequest

GOOD: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def refused(kind: Any, said: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_body(kind, said if isinstance(said, bytes) else json.dumps(said).encode())
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("model", 3, "model"),
        ("model", "", "model"),
        ("messages", "Hello", "messages"),
        ("messages", [], "messages"),
        ("messages", [{"role": "user"}, {"role": "wizard", "content": ""}], "messages.1.role"),
        ("messages", [{"role": "user", "content": 3}], "messages.0.content"),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages.0.content.0.text"),
        ("messages", [{"role": "user", "content": [{"type": "smell"}]}], "messages.0.content.0"),
        ("messages", [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}],
         "messages.0.tool_calls.0.function.name"),
        ("temperature", "hot", "temperature"),
        ("temperature", True, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("top_p", 1.5, "top_p"),
        ("top_k", 1.5, "top_k"),
        ("min_p", [], "min_p"),
        ("repeat_penalty", 0, "repeat_penalty"),
        ("presence_penalty", 3, "presence_penalty"),
        ("frequency_penalty", "0", "frequency_penalty"),
        ("seed", "1", "seed"),
        ("stop", [1], "stop.0"),
        ("stop", ["a", ""], "stop.1"),
        ("stop", 1, "stop"),
        ("max_tokens", "10", "max_tokens"),
        ("max_tokens", -2, "max_tokens"),
        ("max_completion_tokens", 1.5, "max_completion_tokens"),
        ("logit_bias", {"1": "a"}, "logit_bias.1"),
        ("logit_bias", {"1": 101}, "logit_bias.1"),
        ("logprobs", 1, "logprobs"),
        ("top_logprobs", 21, "top_logprobs"),
        ("n", 0, "n"),
        ("n", "2", "n"),
        ("stream", "yes", "stream"),
        ("stream_options", True, "stream_options"),
        ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
        ("tools", {}, "tools"),
        ("tools", [{"type": "function", "function": {}}], "tools.0.function.name"),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": 1}}], "tools.0.function.parameters"),
        ("tool_choice", "sometimes", "tool_choice"),
        ("tool_choice", {"type": "function", "function": {}}, "tool_choice.function.name"),
        ("parallel_tool_calls", "no", "parallel_tool_calls"),
        ("response_format", {"type": "yaml"}, "response_format"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": 4}},
         "response_format.json_schema.schema"),
        ("reasoning_effort", 3, "reasoning_effort"),
        ("chat_template_kwargs", [], "chat_template_kwargs"),
        ("ttl", [1], "ttl"),
        ("preset", 3, "preset"),
        ("draft_model", 3, "draft_model"),
        ("ignore_eos", "no", "ignore_eos"),
        ("cache_prompt", 1, "cache_prompt"),
        ("grammar", {}, "grammar"),
        ("regex", ["a"], "regex"),
    ],
)  # fmt: skip
def test_a_known_field_of_the_wrong_type_is_named(field: str, value: Any, param: str) -> None:
    error = refused(ChatBody, {**GOOD, field: value})
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(field: str) -> None:
    error = refused(ChatBody, {key: value for key, value in GOOD.items() if key != field})
    assert error.param == field
    assert "missing" in error.message


def test_unknown_fields_are_ignored() -> None:
    body = read_body(ChatBody, json.dumps({**GOOD, "store": True, "text": {"verbosity": "low"}}).encode())
    assert body.model == "tiny"


def test_null_stands_for_not_said() -> None:
    fields = dict.fromkeys(ChatBody.model_fields)
    body = read_body(ChatBody, json.dumps({**fields, **GOOD}).encode())
    assert body.temperature is None


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800"}', b"{}extra"]
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    refused(ChatBody, raw)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_numbers_are_finite(number: bytes) -> None:
    raw = json.dumps(GOOD).encode()[:-1] + b', "temperature": ' + number + b"}"
    assert refused(ChatBody, raw).param == "temperature"


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_a_completion_takes_text_and_tokens(prompt: Any) -> None:
    assert read_body(CompletionBody, json.dumps({"model": "m", "prompt": prompt}).encode()).prompt == prompt


@pytest.mark.parametrize("prompt", [3, [], {}, ["a", 1], [[]], [-1], [[1], ["a"]], [1.5], None])
def test_another_prompt_is_refused(prompt: Any) -> None:
    param = refused(CompletionBody, {"model": "m", "prompt": prompt}).param
    assert param is not None and param.split(".")[0] == "prompt"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_refused(raw: bytes) -> None:
    try:
        read_body(ChatBody, raw)
    except InvalidRequest:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(ChatBody.model_fields)), json_values)
def test_any_value_of_a_field_is_taken_or_names_the_field(field: str, value: Any) -> None:
    try:
        read_body(ChatBody, json.dumps({**GOOD, field: value}).encode())
    except InvalidRequest as error:
        assert error.param is not None and error.param.split(".")[0] == field
