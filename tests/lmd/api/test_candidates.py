from lmd.api.candidates import likeliest
from lmd.generation import Echo, Finished, FinishReason, GenerationEvent, TextDelta, TokenLogprob, Usage


def candidate(text: str, *logprobs: float) -> list[GenerationEvent]:
    told = tuple(TokenLogprob(1, b"x", value) for value in logprobs)
    return [TextDelta(text, 9, told), Finished(FinishReason.EOG, Usage(completion_tokens=len(logprobs)), 9)]


def test_the_likeliest_by_the_mean_of_a_token_are_given_in_order() -> None:
    candidates = [candidate("long", -1.0, -1.0, -1.0), candidate("bad", -3.0), candidate("good", -0.5, -0.7)]
    given = likeliest(candidates, 2, keep_logprobs=True)
    assert [(event.text, event.choice) for event in given if isinstance(event, TextDelta)] == [("good", 0), ("long", 1)]
    assert [event.usage.completion_tokens for event in given if isinstance(event, Finished)] == [2 + 1, 3]


def test_an_echoed_prompt_has_no_say() -> None:
    prompt = Echo("p", 9, (TokenLogprob(1, b"p", None), TokenLogprob(1, b"q", -8.0)))
    given = likeliest(
        [[prompt, *candidate("short", -1.0)], [prompt, *candidate("long", -2.0, -2.0, -2.0)]], 1, keep_logprobs=True
    )
    assert [event.text for event in given if isinstance(event, TextDelta)] == ["p", "short"]
    assert given[0] == Echo("p", 0, prompt.logprobs)


def test_logprobs_that_nobody_asked_for_are_left_out() -> None:
    (text, _) = likeliest([candidate("a", -1.0)], 1, keep_logprobs=False)
    assert isinstance(text, TextDelta)
    assert text.logprobs == ()


def test_a_candidate_without_tokens_comes_last() -> None:
    given = likeliest([candidate(""), candidate("b", -9.0)], 1, keep_logprobs=False)
    assert isinstance(given[0], TextDelta)
    assert given[0].text == "b"
