import json
from math import inf
from typing import Any

import pytest

from lmd.api.completions.decode import decode_chat, decode_completion
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import ChatPrompt, GenerationRequest, RawPrompt, ResponseFormat, Role, SamplingParams, TextPart

GOOD: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


def chat(**more: Any) -> GenerationRequest:
    return decode_chat(json.dumps({**GOOD, **more}).encode()).requests[0]


def completion(**more: Any) -> tuple[GenerationRequest, ...]:
    return decode_completion(json.dumps({"model": "tiny", "prompt": "Once", **more}).encode()).requests


def test_what_is_not_said_stays_unsaid() -> None:
    request = chat()
    assert request.sampling == SamplingParams()
    assert (request.n, request.ttl, request.preset, request.logprobs) == (1, None, None, None)
    assert request.cache_prompt and not request.ignore_eos


def test_every_sampling_field_arrives() -> None:
    said = {
        "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1, "presence_penalty": -1,
        "frequency_penalty": 1, "seed": 5, "max_tokens": 9, "stop": ["a", "b"],
    }  # fmt: skip
    sampling = chat(**said).sampling
    assert {name: getattr(sampling, name) for name in said} == {**said, "stop": ("a", "b")}


def test_max_completion_tokens_wins_over_the_older_name() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_no_tokens_at_all_are_refused_by_the_name_that_was_used(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**{name: 0})
    assert caught.value.param == name


def test_limits_beyond_any_model_fit_the_worker() -> None:
    assert chat(max_tokens=10**30).sampling.max_tokens == 2**31 - 1


@pytest.mark.parametrize(
    ("said", "seed"), [(7, 7), (2**32 + 7, 7), (10**30, 10**30 % 2**32), (-5, -1), (-(10**30), -1)]
)
def test_any_integer_is_a_seed(said: int, seed: int) -> None:
    assert chat(seed=said).sampling.seed == seed


def test_a_stop_string_may_stand_alone_or_be_empty() -> None:
    assert chat(stop="end").sampling.stop == ("end",)
    assert chat(stop="").sampling.stop == ()


@pytest.mark.parametrize(("said", "ttl"), [(60, 60.0), ("5m", 300.0), (-1, inf), ("never", inf), (0, 0.0)])
def test_ttl_is_seconds_or_a_duration(said: Any, ttl: float) -> None:
    assert chat(ttl=said).ttl == ttl


@pytest.mark.parametrize("said", [-2, "soon", ""])
def test_another_ttl_is_refused(said: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(ttl=said)
    assert caught.value.param == "ttl"


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "٣", str(2**31), "9" * 5000])
def test_a_bias_is_for_token_ids(token: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(logit_bias={token: 1})
    assert caught.value.param == "logit_bias"


def test_biases_arrive_by_token() -> None:
    assert chat(logit_bias={"12": -100, "0": 2.5}).logit_bias == {12: -100, 0: 2.5}


def test_messages_keep_their_roles_and_parts() -> None:
    prompt = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "hm",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "21"},
        ]
    ).prompt
    assert isinstance(prompt, ChatPrompt)
    developer, user, assistant, tool = prompt.messages
    assert (developer.role, developer.text) == (Role.DEVELOPER, "Be brief.")
    assert (user.parts, user.name) == ((TextPart("a"), TextPart("b")), "Ann")
    assert (assistant.reasoning, assistant.parts) == ("hm", ())
    assert [(call.id, call.name, call.arguments) for call in assistant.tool_calls] == [("c1", "f", "{}")]
    assert (tool.tool_call_id, tool.text) == ("c1", "21")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"role": "assistant", "content": None}, "messages.0.content"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, "messages.0.tool_calls"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
         "messages.0.tool_calls.0.function.arguments"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
         "messages.0.content.0.image_url.url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}}]},
         "messages.0.content.0.image_url.url"),
    ],
)  # fmt: skip
def test_a_message_that_says_nothing_usable_is_named(message: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=[message])
    assert caught.value.param == param


def test_images_wait_for_a_later_part() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(Unsupported) as caught:
        chat(messages=[{"role": "user", "content": [image]}])
    assert caught.value.param == "messages"


def test_a_choice_of_tool_needs_that_tool() -> None:
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(InvalidRequest) as caught:
            chat(tool_choice=choice)
        assert caught.value.param == "tool_choice"


def test_usage_in_chunks_needs_a_stream() -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(stream_options={"include_usage": True})
    assert caught.value.param == "stream_options"
    assert decode_chat(
        json.dumps({**GOOD, "stream": True, "stream_options": {"include_usage": True}}).encode()
    ).include_usage


def test_each_prompt_of_a_completion_is_a_request() -> None:
    assert [request.prompt for request in completion(prompt=["a", "b"])] == [RawPrompt(text="a"), RawPrompt(text="b")]
    assert [request.prompt for request in completion(prompt=[1, 2])] == [RawPrompt(tokens=(1, 2))]
    assert [request.prompt for request in completion(prompt=[[1], [2]])] == [
        RawPrompt(tokens=(1,)),
        RawPrompt(tokens=(2,)),
    ]


def test_prompts_times_choices_are_bounded() -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(prompt=["a"] * 100, n=2)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("said", [{"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}])
def test_a_best_of_that_cannot_be_is_refused(said: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completion(**said)
    assert caught.value.param == "best_of"


def test_suffix_and_grammar_of_a_completion_are_kept() -> None:
    prompt = completion(suffix="end", grammar='root ::= "a"')[0].prompt
    assert isinstance(prompt, RawPrompt)
    assert (prompt.suffix, prompt.response_format) == ("end", ResponseFormat(kind="gbnf", source='root ::= "a"'))


def test_a_regex_is_kept_and_goes_with_no_other_form() -> None:
    wanted = ResponseFormat(kind="regex", source="[ab]+")
    assert [request.prompt.response_format for request in completion(prompt=["a", "b"], regex="[ab]+")] == [wanted] * 2
    assert chat(regex="[ab]+", response_format={"type": "text"}).prompt.response_format == wanted
    for more, param in (
        ({"grammar": "start: /a/"}, "regex"),
        ({"response_format": {"type": "json_object"}}, "regex"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            chat(regex="[ab]+", **more)
        assert caught.value.param == param
