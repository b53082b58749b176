"""The official ``anthropic`` client, unchanged, against the real daemon with the tiny model."""

from typing import Any

import anthropic
import pytest

COUNT: Any = [{"role": "user", "content": "Count to 20."}]
TO_20 = ", ".join(str(n) for n in range(1, 21)) + "."
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
ASK_BOTH: Any = [{"role": "user", "content": "What is the weather in Paris and Tokyo?"}]


@pytest.fixture(scope="module")
def client(daemon: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=daemon.url, api_key="none", max_retries=0)


def ask(client: anthropic.Anthropic, **more: Any) -> Any:
    # temperature travels in the body: newer clients have no argument for it.
    body = {"model": "tiny-chat", "messages": COUNT, "max_tokens": 200, **more}
    return client.messages.create(**body, extra_body={"temperature": 0})


def streamed(client: anthropic.Anthropic, **more: Any) -> tuple[list[Any], Any]:
    """The events of a stream, and the message that the client put together from them."""
    body = {"model": "tiny-chat", "messages": COUNT, "max_tokens": 200, **more}
    with client.messages.stream(**body, extra_body={"temperature": 0}) as stream:
        return list(stream), stream.get_final_message()


def test_models_are_listed_as_this_client_reads_them(client: anthropic.Anthropic) -> None:
    models = {model.id: model for model in client.models.list()}
    assert models["tiny-chat"].display_name == "tiny-chat"
    assert models["tiny-chat"].created_at.year >= 2025
    assert client.models.retrieve("gpt-count").id == "counter"


def test_a_message_is_answered(client: anthropic.Anthropic) -> None:
    message = ask(client)
    (block,) = message.content
    assert (block.type, block.text) == ("text", TO_20)
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert message.id.startswith("msg_")
    assert message.usage.output_tokens > 20


def test_a_stream_makes_the_same_message(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    events, message = streamed(client)
    raw = [event.type for event in events if event.type not in {"text", "ping"}]
    assert list(dict.fromkeys(raw)) == [
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta",
        "message_stop",
    ]  # fmt: skip
    assert message.content[0].text == TO_20
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == whole.usage.output_tokens


def test_all_input_tokens_together_are_the_prompt(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="tiny-chat", messages=COUNT).input_tokens
    for message in (ask(client), ask(client), streamed(client)[1]):
        usage = message.usage
        assert usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens == counted
    with_tools = client.messages.count_tokens(model="tiny-chat", messages=COUNT, tools=[WEATHER], system="Be brief.")
    assert with_tools.input_tokens > counted


def test_max_tokens_and_stop_sequences_say_why_it_ended(client: anthropic.Anthropic) -> None:
    assert ask(client, max_tokens=3).stop_reason == "max_tokens"
    stopped = ask(client, stop_sequences=[", 5"])
    assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
        "1, 2, 3, 4", "stop_sequence", ", 5",
    )  # fmt: skip
    assert streamed(client, stop_sequences=[", 5"])[1].stop_sequence == ", 5"


@pytest.mark.parametrize("system", ["Your name is Bob.", [{"type": "text", "text": "Your name is Bob."}]])
def test_a_system_prompt_is_obeyed(client: anthropic.Anthropic, system: Any) -> None:
    assert "Bob" in ask(client, messages=[{"role": "user", "content": "Who are you?"}], system=system).content[0].text


def test_thinking_comes_in_a_block_of_its_own(client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    thought, answer = ask(client, thinking=thinking, max_tokens=2000).content
    assert (thought.type, answer.type) == ("thinking", "text")
    assert thought.thinking and thought.signature
    assert "think>" not in thought.thinking + answer.text
    _, message = streamed(client, thinking=thinking, max_tokens=2000)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[0].signature) == (thought.thinking, thought.signature)
    # It is taken back as it was given.
    again = [*COUNT, {"role": "assistant", "content": [thought, answer]}, {"role": "user", "content": "Hello"}]
    assert ask(client, messages=again).content
    hidden = ask(client, thinking={**thinking, "display": "omitted"}, max_tokens=2000).content[0]
    assert (hidden.thinking, hidden.signature) == ("", thought.signature)
    assert [block.type for block in ask(client, thinking={"type": "disabled"}).content] == ["text"]


def test_tools_are_called_in_parallel_and_their_results_taken(client: anthropic.Anthropic) -> None:
    message = ask(client, messages=ASK_BOTH, tools=[WEATHER])
    assert message.stop_reason == "tool_use"
    calls = [block for block in message.content if block.type == "tool_use"]
    assert [(call.name, call.input) for call in calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Tokyo"}),
    ]
    assert len({call.id for call in calls}) == 2
    one = [{"role": "user", "content": "What is the weather in Rome?"}]
    first = ask(client, messages=one, tools=[WEATHER])
    (call,) = [block for block in first.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'}
    after = [*one, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert ask(client, messages=after, tools=[WEATHER]).content[0].text == "It is 21 degrees and sunny in Rome."


def test_arguments_stream_as_they_are_written(client: anthropic.Anthropic) -> None:
    events, message = streamed(client, messages=ASK_BOTH, tools=[WEATHER])
    assert [block.input for block in message.content if block.type == "tool_use"] == [
        {"city": "Paris"},
        {"city": "Tokyo"},
    ]
    starts = [event.index for event in events if event.type == "content_block_start"]
    stops = [event.index for event in events if event.type == "content_block_stop"]
    assert starts == stops == list(range(len(message.content)))
    assert any(event.type == "input_json" for event in events)
    assert message.stop_reason == "tool_use"


def test_tool_choice_is_enforced(client: anthropic.Anthropic) -> None:
    def kinds(choice: Any) -> list[str]:
        message = ask(client, messages=ASK_BOTH, tools=[WEATHER], tool_choice=choice)
        return [block.type for block in message.content]

    assert "tool_use" not in kinds({"type": "none"})
    assert kinds({"type": "auto", "disable_parallel_tool_use": True}).count("tool_use") == 1
    hello: Any = [{"role": "user", "content": "Hello"}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        message = ask(client, messages=hello, tools=[WEATHER], tool_choice=choice)
        assert message.content[-1].type == "tool_use"


def test_a_schema_for_the_answer_is_enforced(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}  # fmt: skip
    text = ask(client, output_config={"format": {"type": "json_schema", "schema": schema}}).content[-1].text
    assert text.replace(" ", "").replace("\n", "") in {'{"yes":true}', '{"yes":false}'}


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        ask(client, model="claude-99")
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "Count to 20. " * 3000}])
    assert "prompt is too long" in str(long.value)
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        ask(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with pytest.raises(anthropic.BadRequestError, match="prefill"):
        ask(client, messages=[*COUNT, {"role": "assistant", "content": "1, 2"}])
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.role"):
        ask(client, messages=[{"role": "wizard", "content": "Hello"}])
