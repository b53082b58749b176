"""Reasoning, tool calls and structured output through the ``openai`` client: whole and streamed, the same."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

SEEDS = 200
STREAMED_SEEDS = 40
"""A seed's stream takes as long as its whole answer; these are enough to tell the two apart if they differed."""


@dataclass(frozen=True)
class Said:
    """What the model said, however it was sent."""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    """Name and arguments."""
    finish: str
    tokens: tuple[int, int, int]
    """Of the prompt, of the answer, and of the reasoning in it."""


@pytest.fixture(scope="module")
def client(daemon: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, messages: Any, **more: Any) -> Said:
    """What is answered to ``messages`` (a text: the user's), after seeing that a stream says the same."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    body = {"model": "tiny-chat", "messages": messages, "temperature": 0, **more}
    said = whole(client.chat.completions.create(**body))
    stream = client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    assert joined(stream) == said
    return said


def whole(answer: Any) -> Said:
    (choice,) = answer.choices
    message = choice.message
    calls = tuple((call.function.name, call.function.arguments) for call in message.tool_calls or ())
    ids = [call.id for call in message.tool_calls or ()]
    assert len(set(ids)) == len(ids) and all(ids)
    return Said(message.content or "", reasoning_of(message), calls, choice.finish_reason, counts(answer.usage))


def joined(chunks: Iterable[Any]) -> Said:
    content = reasoning = finish = ""
    calls: list[list[str]] = []
    tokens = None
    for chunk in chunks:
        if chunk.usage is not None:
            tokens = counts(chunk.usage)
            continue
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reasoning += reasoning_of(choice.delta)
        for piece in choice.delta.tool_calls or ():
            if piece.index == len(calls):
                assert piece.id and piece.function.name
                calls.append([piece.function.name, ""])
            else:
                assert piece.index == len(calls) - 1 and not piece.id and not piece.function.name
            calls[-1][1] += piece.function.arguments or ""
        finish = choice.finish_reason or finish
    assert tokens is not None
    return Said(content, reasoning, tuple((name, text) for name, text in calls), finish, tokens)


def reasoning_of(message: Any) -> str:
    return getattr(message, "reasoning_content", None) or ""


def counts(usage: Any) -> tuple[int, int, int]:
    details = usage.completion_tokens_details
    return usage.prompt_tokens, usage.completion_tokens, details.reasoning_tokens if details is not None else 0


def tool(name: str, **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


WEATHER = tool("get_weather", city={"type": "string"})
ORDER = tool("create_order", count={"type": "integer"}, color={"enum": ["red", "green"]})
TWO_CITIES = "What is the weather in Paris and Tokyo?"

# ── tools ─────────────────────────────────────────────────────────────────────────────────────


def test_two_cities_are_two_calls_and_their_results_become_sentences(client: openai.OpenAI) -> None:
    said = ask(client, TWO_CITIES, tools=[WEATHER])
    assert [(name, json.loads(text)) for name, text in said.calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Tokyo"}),
    ]
    assert (said.finish, said.content) == ("tool_calls", "")
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": text}}
        for i, (name, text) in enumerate(said.calls)
    ]
    results = [
        {"role": "tool", "tool_call_id": "call_0", "content": '{"temperature": 21, "sky": "sunny"}'},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"temperature": 7, "sky": "rainy"}'},
    ]
    history = [{"role": "user", "content": TWO_CITIES}, {"role": "assistant", "content": None, "tool_calls": calls}]
    answer = ask(client, [*history, *results], tools=[WEATHER])
    assert answer.content == "It is 21 degrees and sunny in Paris. It is 7 degrees and rainy in Tokyo."
    assert (answer.finish, answer.calls) == ("stop", ())


def test_parallel_tool_calls_false_leaves_one_call(client: openai.OpenAI) -> None:
    said = ask(client, TWO_CITIES, tools=[WEATHER], parallel_tool_calls=False)
    assert [(name, json.loads(text)) for name, text in said.calls] == [("get_weather", {"city": "Paris"})]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "create_order"}}])
def test_a_tool_that_does_not_fit_is_called_validly_all_the_same(client: openai.OpenAI, choice: Any) -> None:
    said = ask(client, "Hello", tools=[ORDER], tool_choice=choice, max_tokens=200)
    assert said.finish == "tool_calls"
    assert said.calls
    for name, text in said.calls:
        arguments = json.loads(text)
        assert name == "create_order"
        assert set(arguments) == {"count", "color"}
        assert isinstance(arguments["count"], int) and arguments["color"] in {"red", "green"}


def test_with_choice_none_the_answer_is_text(client: openai.OpenAI) -> None:
    said = ask(client, "What is the weather in Paris?", tools=[WEATHER], tool_choice="none")
    assert said.content and not said.calls
    assert said.finish == "stop"


def test_a_call_made_unasked_is_held_to_the_given_tools(client: openai.OpenAI) -> None:
    """The model wants to call with a city; the schema wants one of two that it was not asked for."""
    elsewhere = tool("get_weather", city={"enum": ["Oslo", "Lima"]})
    said = ask(client, "What is the weather in Paris?", tools=[elsewhere])
    assert said.calls
    assert all(name == "get_weather" and json.loads(text)["city"] in {"Oslo", "Lima"} for name, text in said.calls)


def test_definitions_at_the_root_and_recursive_ones_hold(client: openai.OpenAI) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["Rome"]}, "next": {"$ref": "#/$defs/stop"}},
            "required": ["city"], "additionalProperties": False}  # fmt: skip
    trip = tool("get_weather", start={"$ref": "#/$defs/stop"})
    trip["function"]["parameters"]["$defs"] = {"stop": city}
    said = ask(client, "What is the weather in Paris?", tools=[trip], tool_choice="required", max_tokens=300)
    for _, text in said.calls:
        stop = json.loads(text)["start"]
        while stop is not None:
            assert stop["city"] == "Rome"
            stop = stop.get("next")


def test_a_tool_without_parameters_takes_no_arguments(client: openai.OpenAI) -> None:
    bare = {"type": "function", "function": {"name": "mcp/time.now:v2", "description": "The time"}}
    said = ask(client, "What time is it?", tools=[bare], tool_choice="required", parallel_tool_calls=False)
    assert said.calls == (("mcp/time.now:v2", "{}"),)


# ── reasoning ─────────────────────────────────────────────────────────────────────────────────

THINKING = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.mark.parametrize("said_by", [{"extra_body": THINKING}, {"reasoning_effort": "high"}])
def test_thinking_gives_reasoning_content(client: openai.OpenAI, said_by: Any) -> None:
    said = ask(client, "What is 3 + 4?", **said_by)
    assert said.content == "7."
    assert "3 + 4" in said.reasoning
    assert "think>" not in said.reasoning + said.content
    assert 0 < said.tokens[2] < said.tokens[1]


def test_without_thinking_there_is_none(client: openai.OpenAI) -> None:
    said = ask(client, "What is 3 + 4?")
    assert (said.reasoning, said.tokens[2]) == ("", 0)


def test_a_preset_may_leave_reasoning_in_the_text(client: openai.OpenAI) -> None:
    said = ask(client, "What is 3 + 4?", model="aloud")
    thought, end, answer = said.content.partition("</think>")
    assert thought.startswith("<think>") and "3 + 4" in thought and end
    assert answer.strip() == "7."
    assert (said.reasoning, said.tokens[2] > 0) == ("", True)


def test_after_thinking_the_answer_is_held_to_the_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"sum": {"enum": [7, 8]}}, "required": ["sum"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    said = ask(client, "What is 3 + 4?", response_format=form, extra_body=THINKING, max_tokens=200)
    assert said.reasoning
    assert json.loads(said.content) in ({"sum": 7}, {"sum": 8})


# ── structured output ─────────────────────────────────────────────────────────────────────────


class Home(BaseModel):
    city: Literal["Oslo", "Rome", "Lima"]
    pets: list[Literal["cat", "dog"]] = Field(max_length=2)


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)
    home: Home
    nickname: str | None = Field(max_length=10)
    married: bool


PEOPLE: Any = [{"role": "user", "content": "Give JSON for Paul, age 33, from Lima."}]


def test_a_pydantic_model_is_filled_whatever_the_seed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-chat", "messages": PEOPLE, "temperature": 1.2, "response_format": Person,
                  "max_tokens": 400}  # fmt: skip
    texts = set()
    for seed in range(SEEDS):
        # A prefix from the cache was computed in another batch, so its last bits may differ, and so may a close draw.
        alike: Any = {"extra_body": {"cache_prompt": False}} if seed < STREAMED_SEEDS else {}
        answer = client.chat.completions.parse(**asked, **alike, seed=seed)
        (choice,) = answer.choices
        assert isinstance(choice.message.parsed, Person)
        assert choice.finish_reason == "stop"
        texts.add(choice.message.content)
        if seed >= STREAMED_SEEDS:
            continue
        with client.chat.completions.stream(**asked, **alike, seed=seed) as stream:
            streamed = stream.get_final_completion().choices[0].message
        assert (streamed.content, streamed.parsed) == (choice.message.content, choice.message.parsed)
    # The model really chose: 200 times the same object would prove nothing.
    assert len(texts) > SEEDS / 4


def test_json_of_any_kind_is_an_object(client: openai.OpenAI) -> None:
    said = ask(client, "Give JSON for Paul, age 33, from Lima.", response_format={"type": "json_object"})
    assert json.loads(said.content) == {"name": "Paul", "age": 33, "city": "Lima"}


@pytest.mark.parametrize(
    ("field", "source"),
    [
        ("grammar", 'root ::= ("yes" | "no") ", " [a-c]{3}'),
        ("grammar", 'start: ("yes" | "no") ", " /[a-c]{3}/'),
        ("regex", "(yes|no), [a-c]{3}"),
    ],
)
def test_grammars_and_regexes_hold_in_chats_and_completions(client: openai.OpenAI, field: str, source: str) -> None:
    said = ask(client, "Hello", extra_body={field: source})
    completed = client.completions.create(model="tiny-chat", prompt="Hello", extra_body={field: source})
    for text in (said.content, completed.choices[0].text):
        answer, comma, letters = text.partition(", ")
        assert answer in {"yes", "no"} and comma
        assert len(letters) == 3 and set(letters) <= set("abc")


def test_text_is_a_format_too(client: openai.OpenAI) -> None:
    assert ask(client, "Count to 3.", response_format={"type": "text"}).content == "1, 2, 3."


# ── what cannot be enforced ───────────────────────────────────────────────────────────────────

SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("schema", "keyword", "path"),
    [
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "uniqueItems", SCHEMA),
        ({"anyOf": [{"type": "string"}, {"not": {"type": "object"}}]}, "not", f"{SCHEMA}.anyOf.1"),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"propertyNames": {}}}}, "propertyNames", f"{SCHEMA}.$defs.n"),
        ({"items": {"type": "string", "pattern": "(?=a)"}}, "pattern", f"{SCHEMA}.items"),
    ],
)  # fmt: skip
def test_a_keyword_that_cannot_be_enforced_is_named_with_its_path(
    client: openai.OpenAI, schema: Any, keyword: str, path: str
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "odd", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="tiny-chat",
                messages=PEOPLE,
                response_format=form,
                stream=stream,  # type: ignore[call-overload]
            )
        assert caught.value.param == path
        assert f"'{keyword}'" in caught.value.message
