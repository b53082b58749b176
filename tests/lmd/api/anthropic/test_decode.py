"""Anthropic's bodies become requests; what cannot be served is named."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.api.anthropic.body import MessagesBody
from lmd.api.anthropic.decode import decode_count, decode_messages
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import ChatPrompt, ToolChoice

GOOD: dict[str, Any] = {"model": "tiny", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def decoded(**more: Any) -> Any:
    return decode_messages(json.dumps({**GOOD, **more}).encode())


def prompt(**more: Any) -> ChatPrompt:
    found = decoded(**more).request.prompt
    assert isinstance(found, ChatPrompt)
    return found


def test_blocks_of_a_user_keep_their_order_around_tool_results() -> None:
    calls = [{"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}]
    blocks = [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "one"}]},
        {"type": "tool_result", "tool_use_id": "b", "content": "broken", "is_error": True},
        {"type": "text", "text": "And "},
        {"type": "text", "text": "now?"},
    ]
    said = [*GOOD["messages"], {"role": "assistant", "content": calls}, {"role": "user", "content": blocks}]
    found = [(message.role.value, message.text, message.tool_call_id) for message in prompt(messages=said).messages]
    assert found[2:] == [("tool", "one", "a"), ("tool", "Error: broken", "b"), ("user", "And now?", None)]
    assert prompt(messages=said).messages[1].tool_calls[0].arguments == '{"x":1}'


def test_thoughts_are_taken_back_and_another_servers_secrets_left_out() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "text", "text": "Hi"},
    ]
    said = [*GOOD["messages"], {"role": "assistant", "content": blocks}, *GOOD["messages"]]
    message = prompt(messages=said).messages[1]
    assert (message.reasoning, message.text) == ("hm", "Hi")


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, ToolChoice(), True),
        ({"type": "any"}, ToolChoice("required"), True),
        ({"type": "none"}, ToolChoice("none"), True),
        ({"type": "tool", "name": "f"}, ToolChoice("named", "f"), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice(), False),
    ],
)
def test_tool_choice(choice: Any, expected: ToolChoice, parallel: bool) -> None:
    found = prompt(tools=[TOOL], tool_choice=choice)
    assert (found.tool_choice, found.parallel_tool_calls) == (expected, parallel)


@pytest.mark.parametrize(
    ("more", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "on"),
        ({"thinking": {"type": "disabled"}}, "off"),
        ({"thinking": {"type": "adaptive"}}, "on"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "low"),
        ({"output_config": {"effort": "max"}}, "high"),
    ],
)
def test_thinking(more: Any, effort: str | None) -> None:
    assert prompt(**more).reasoning_effort == effort


@pytest.mark.parametrize(
    ("more", "kind", "param"),
    [
        ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
        ({"max_tokens": None}, InvalidRequest, "max_tokens"),
        ({"messages": []}, InvalidRequest, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, InvalidRequest,
         "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, InvalidRequest, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}]},
         InvalidRequest, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source":
          {"type": "base64", "media_type": "image/png", "data": "%%"}}]}]}, InvalidRequest,
         "messages.0.content.0.source.data"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "x"}}]}]},
         Unsupported, "messages.0.content.0.source"),
        ({"messages": [*GOOD["messages"], {"role": "assistant", "content": "He"}]}, Unsupported, "messages.1.role"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, Unsupported, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, InvalidRequest, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, InvalidRequest, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, InvalidRequest, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, InvalidRequest, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, InvalidRequest, "thinking.budget_tokens"),
        ({"stop_sequences": [""]}, InvalidRequest, "stop_sequences.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(more: Any, kind: type[InvalidRequest], param: str) -> None:
    with pytest.raises(kind) as caught:
        decoded(**more)
    assert caught.value.param == param


def test_counting_needs_no_max_tokens() -> None:
    said = {key: value for key, value in GOOD.items() if key != "max_tokens"}
    assert decode_count(json.dumps(said).encode()).model == "tiny"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(MessagesBody.model_fields)), json_values)
def test_any_value_of_a_field_is_taken_or_names_the_field(field: str, value: Any) -> None:
    try:
        decoded(**{field: value})
    except InvalidRequest as error:
        assert error.param is not None and error.param.split(".")[0] == field
