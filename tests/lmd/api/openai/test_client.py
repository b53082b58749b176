"""The official ``openai`` client, unchanged, against the real daemon with the tiny model."""

import asyncio
import json
from typing import Any

import openai
import pytest

COUNT = [{"role": "user", "content": "Count to 20."}]
TO_20 = ", ".join(str(n) for n in range(1, 21)) + "."


@pytest.fixture(scope="module")
def client(daemon: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0)


PIXEL = "data:image/png;base64,iVBORw0KGgo="


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny-chat", "messages": COUNT, "temperature": 0, **more})


def streamed(client: openai.OpenAI, **more: Any) -> list[Any]:
    return list(chat(client, stream=True, **more))


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"tiny-chat", "tiny-draft", "counter", "bob"} <= set(names)
    assert "gpt-count" not in names
    assert client.models.retrieve("gpt-count").id == "counter"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = chat(client)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (TO_20, "assistant", "stop")
    assert answer.model == "tiny-chat"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_and_its_usage_too(client: openai.OpenAI) -> None:
    whole = chat(client)
    chunks = streamed(client, stream_options={"include_usage": True})
    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == TO_20
    assert [part.choices[0].finish_reason for part in parts][-1] == "stop"
    assert all(part.choices[0].finish_reason is None for part in parts[:-1])
    assert all(part.usage is None for part in parts)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_asking_there_is_no_usage_in_a_stream(client: openai.OpenAI) -> None:
    chunks = streamed(client)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_max_tokens_cut_the_answer(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    answer = chat(client, stop=[", 5"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("1, 2, 3, 4", "stop")


def test_a_preset_is_a_model_and_its_alias_too(client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="gpt-count", messages=COUNT)  # type: ignore[arg-type]
    assert answer.headers["x-lmd-preset"] == "counter"
    parsed = answer.parse()
    assert parsed.model == "counter"
    assert parsed.choices[0].message.content == TO_20


def test_a_preset_in_the_body_brings_its_system_prompt(client: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "Who are you?"}]
    answer = chat(client, messages=ask, extra_body={"preset": "bob"})
    assert "Bob" in answer.choices[0].message.content
    own = [{"role": "system", "content": "Your name is Eve."}, *ask]
    answer = chat(client, messages=own, extra_body={"preset": "bob"})
    assert "Bob" not in answer.choices[0].message.content


def test_several_choices_have_their_own_texts_and_share_the_prompt(client: openai.OpenAI) -> None:
    one = chat(client)
    answer = chat(client, n=3)
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(i, TO_20) for i in range(3)]
    assert answer.usage.prompt_tokens == one.usage.prompt_tokens
    assert answer.usage.completion_tokens == 3 * one.usage.completion_tokens
    texts = ["", "", ""]
    for chunk in streamed(client, n=3):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [TO_20] * 3


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def text(seed: int) -> str:
        tell = [{"role": "user", "content": "Tell me a story about Emma in Rome."}]
        return str(chat(client, messages=tell, temperature=1.5, seed=seed, max_tokens=40).choices[0].message.content)

    assert text(7) == text(7)
    assert len({text(seed) for seed in range(4)}) > 1


def test_logprobs_are_told_for_each_token(client: openai.OpenAI) -> None:
    answer = chat(client, logprobs=True, top_logprobs=3, max_tokens=5)
    told = answer.choices[0].logprobs.content
    assert "".join(one.token for one in told) == answer.choices[0].message.content
    assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in told)
    assert all(one.top_logprobs[0].logprob == max(top.logprob for top in one.top_logprobs) for one in told)
    chunks = streamed(client, logprobs=True, max_tokens=5)
    pieces = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in pieces] == [one.token for one in told]


def test_completions_take_text_lists_and_tokens(client: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\nCount to 20.<|im_end|>\n<|im_start|>assistant\n"
    one = client.completions.create(model="tiny-chat", prompt=prompt, temperature=0)
    assert one.choices[0].text == TO_20
    assert one.id.startswith("cmpl-")
    several = client.completions.create(
        model="tiny-chat", prompt=[prompt, prompt.replace("20", "3")], temperature=0, n=2
    )
    assert [choice.text for choice in several.choices] == [TO_20, TO_20, "1, 2, 3.", "1, 2, 3."]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage is not None and one.usage is not None
    assert several.usage.prompt_tokens > one.usage.prompt_tokens
    echoed = client.completions.create(model="tiny-chat", prompt=prompt, temperature=0, echo=True, max_tokens=1)
    assert echoed.choices[0].text == prompt + "1"
    streamed = client.completions.create(model="tiny-chat", prompt=prompt, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == TO_20


def test_what_is_wrong_is_told_before_a_stream_echoes_its_prompt(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="99999"):
        client.completions.create(
            model="tiny-chat", prompt="Hello", echo=True, stream=True, max_tokens=1, logit_bias={"99999": 1}
        )


def test_an_echoed_prompt_has_log_probabilities_but_for_its_first_token(client: openai.OpenAI) -> None:
    prompt = "<|im_start|>user\nCount to 20.<|im_end|>\n<|im_start|>assistant\n"
    asked: Any = {"model": "tiny-chat", "prompt": prompt, "temperature": 0, "echo": True, "logprobs": 2}
    for whole in (
        client.completions.create(**asked, max_tokens=3).choices[0],
        client.completions.create(**asked, max_tokens=3, n=1, best_of=2).choices[0],
    ):
        told = whole.logprobs
        assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
        assert "".join(told.tokens) == whole.text
        assert whole.text.startswith(prompt + "1")
        assert [
            whole.text[at:][: len(token)] for at, token in zip(told.text_offset, told.tokens, strict=True)
        ] == told.tokens
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert all(one <= 0 for one in told.token_logprobs[1:])
        assert all(1 <= len(top) <= 2 for top in told.top_logprobs[1:])
    chunks = [chunk.choices[0] for chunk in client.completions.create(**asked, max_tokens=3, stream=True)]
    pieces = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [token for piece in pieces for token in piece.tokens or ()] == told.tokens
    assert [at for piece in pieces for at in piece.text_offset or ()] == told.text_offset
    alone = client.completions.create(**asked, max_tokens=0).choices[0]
    assert (alone.text, alone.finish_reason) == (prompt, "length")
    assert alone.logprobs is not None and alone.logprobs.token_logprobs is not None
    assert alone.logprobs.token_logprobs[1:] == pytest.approx(
        told.token_logprobs[1 : len(alone.logprobs.token_logprobs)], abs=0.05
    )


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        chat(client, model="gpt-99")
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": "Count to 20. " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}])
    assert (caught.value.code, caught.value.param) == ("not_implemented", "messages")


async def test_32_clients_stream_at_once_and_each_gets_its_own_text(daemon: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:

        async def count(n: int) -> str:
            stream = await client.chat.completions.create(
                model="tiny-chat",
                messages=[{"role": "user", "content": f"Count to {n}."}],
                temperature=0,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        numbers = [5 + index for index in range(32)]
        texts = await asyncio.gather(*(count(n) for n in numbers))
    assert texts == [", ".join(str(i) for i in range(1, n + 1)) + "." for n in numbers]


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
BOTH_CITIES = [{"role": "user", "content": "What is the weather in Paris and Tokyo?"}]


def test_tool_calls_come_whole_and_streamed_alike(client: openai.OpenAI) -> None:
    choice = chat(client, messages=BOTH_CITIES, tools=[WEATHER]).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Tokyo"})]
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    ids = set()
    chunks = streamed(client, messages=BOTH_CITIES, tools=[WEATHER])
    for chunk in chunks:
        for piece in chunk.choices[0].delta.tool_calls or ():
            if piece.id:
                assert piece.index not in names and piece.function.name
                ids.add(piece.id)
                names[piece.index] = piece.function.name
            arguments[piece.index] = arguments.get(piece.index, "") + (piece.function.arguments or "")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert [arguments[index] for index in sorted(arguments)] == [
        call.function.arguments for call in choice.message.tool_calls
    ]
    assert len(ids) == 2
    assert names == {0: "get_weather", 1: "get_weather"}


def test_reasoning_is_told_apart_and_counted(client: openai.OpenAI) -> None:
    answer = chat(client, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    message = answer.choices[0].message
    assert message.reasoning_content
    assert "</think>" not in message.content
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens


def test_a_schema_is_enforced(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"enum": ["Oslo", "Rome"]}},
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    }
    ask = [{"role": "user", "content": "Give JSON for Paul, age 33, from Lima."}]
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    answer = chat(client, messages=ask, response_format=form, max_tokens=200)
    # Left alone the model says Lima, as it was asked to.
    said = json.loads(answer.choices[0].message.content)
    assert (said["name"], said["age"]) == ("Paul", 33)
    assert said["city"] in {"Oslo", "Rome"}


def test_a_draft_model_gives_the_same_text_and_true_counts(client: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "Count to 40."}]
    plain = chat(client, messages=ask, max_tokens=120)
    for draft in ("tiny-draft", "prompt-lookup"):
        drafted = chat(client, messages=ask, max_tokens=120, extra_body={"draft_model": draft})
        assert drafted.choices[0].message.content == plain.choices[0].message.content
        details = drafted.usage.completion_tokens_details
        assert details.accepted_prediction_tokens >= 0
        assert details.rejected_prediction_tokens >= 0
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client, messages=ask, extra_body={"draft_model": "nobody"})
    assert caught.value.param == "draft_model"


def test_samplers_beyond_openai_reach_the_engine(client: openai.OpenAI) -> None:
    ask = [{"role": "user", "content": "Count to 20."}]
    assert "20" in chat(client, messages=ask).choices[0].message.content
    penalised = chat(client, messages=ask, extra_body={"dry_multiplier": 8.0, "dry_allowed_length": 0})
    assert penalised.choices[0].message.content != chat(client, messages=ask).choices[0].message.content
    narrow = chat(client, messages=ask, temperature=1.5, seed=5, extra_body={"typical_p": 1e-6})
    assert narrow.choices[0].message.content == chat(client, messages=ask).choices[0].message.content


def test_the_best_of_several_completions_is_the_likeliest(client: openai.OpenAI) -> None:
    def complete(**more: Any) -> Any:
        asked = {"model": "tiny-chat", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.2, "seed": 7}
        return client.completions.create(**{**asked, **more})

    best = complete(best_of=6, n=2, logprobs=0)
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in best.choices]
    assert means == sorted(means, reverse=True)
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage.completion_tokens > 2 * 12  # those left out were generated too
    assert complete(best_of=3).choices[0].logprobs is None
    for wrong in ({"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(**wrong)
        assert caught.value.param == "best_of"


def test_a_model_that_cannot_fill_in_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny-chat", prompt="def f():", suffix="return 1")
    assert (caught.value.code, caught.value.param) == ("not_implemented", "suffix")


def test_a_grammar_holds_for_completions_too(client: openai.OpenAI) -> None:
    grammar = 'root ::= "yes" | "no"'
    answer = client.completions.create(model="tiny-chat", prompt="Hello", extra_body={"grammar": grammar})
    assert answer.choices[0].text in {"yes", "no"}
