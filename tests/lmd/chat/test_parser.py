"""The streaming parser on what models write well, badly and not to the end."""

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmd.chat.formats import Format, JsonKeys, Style
from lmd.chat.overrides import DEFAULT_TOOLS, OVERRIDES
from lmd.chat.parser import ChatParser
from lmd.generation import TextDelta, Tool, ToolCallStart
from tests.lmd.chat.turns import TOOLS, Read, read, two_way_splits, without_ids

HERMES = Format(
    reasoning_start="<think>",
    reasoning_end="</think>",
    style=Style.JSON,
    call_start="<tool_call>\n",
    call_end="\n</tool_call>",
    separator="\n",
    parallel=True,
)
TAGGED = Format(
    style=Style.TAGGED,
    call_start="<tool_call>\n<function=",
    call_end="\n</function>\n</tool_call>",
    name_end=">\n",
    key_start="<parameter=",
    key_end=">\n",
    value_end="\n</parameter>",
    parallel=True,
)
MISTRAL = Format(style=Style.NAME_JSON, call_start="[TOOL_CALLS]", name_end="[ARGS]", parallel=True, short_ids=True)
LLAMA = Format(style=Style.JSON, json=JsonKeys(arguments="parameters"), call_lead="<|python_tag|>")
ARRAY = Format(
    style=Style.JSON,
    json=JsonKeys(array=True),
    section_start="<tool_calls>",
    section_end="</tool_calls>",
    parallel=True,
)
PYTHONIC = Format(
    style=Style.PYTHONIC,
    section_start="<|tool_call_start|>",
    section_end="<|tool_call_end|>",
    escapes=True,
    parallel=True,
)
BRACES = Format(style=Style.BRACES, call_start="<|tool_call>call:", call_end="<tool_call|>", parallel=True)
NAMED = {candidate.name: candidate.change(Format()) for candidate in OVERRIDES}
ALL = {
    "hermes": HERMES,
    "tagged": TAGGED,
    "mistral": MISTRAL,
    "llama": LLAMA,
    "array": ARRAY,
    "pythonic": PYTHONIC,
    "braces": BRACES,
    "default": DEFAULT_TOOLS,
    "gpt-oss": NAMED["gpt-oss"],
    "functionary": NAMED["functionary-v3.2"],
    "minimax-m3": NAMED["minimax-m3"],
}
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def parser(format_: Format, **options: object) -> ChatParser:
    options.setdefault("tools", TOOLS)
    return ChatParser(format_, prefill=format_.prefill, **options)  # type: ignore[arg-type]


def whole(format_: Format, text: str, **options: object) -> Read:
    """What ``text`` gives, the same however it is cut in two."""
    got = read(parser(format_, **options), [text])
    for pieces in two_way_splits(text):
        assert without_ids(read(parser(format_, **options), pieces)) == without_ids(got), pieces
    return got


# ── reasoning ─────────────────────────────────────────────────────────────────────────────────


def test_reasoning_is_split_from_text() -> None:
    got = whole(HERMES, "<think>\nWell.\n</think>\n\nYes.")
    assert (got.reasoning, got.text) == ("Well.", "Yes.")


def test_reasoning_that_the_prompt_opened_needs_no_start() -> None:
    got = whole(HERMES, "Well.\n</think>\n\nYes.", reasoning_open=True)
    assert (got.reasoning, got.text) == ("Well.", "Yes.")


def test_reasoning_that_never_ends_stays_reasoning() -> None:
    got = whole(HERMES, "<think>Well, on and on")
    assert (got.reasoning, got.text) == ("Well, on and on", "")


def test_a_call_inside_open_reasoning_ends_it() -> None:
    got = whole(HERMES, f"Well.\n{NOW_CALL}", reasoning_open=True)
    assert (got.reasoning, got.text, got.calls) == ("Well.", "", (("now", "{}", True),))


def test_inline_reasoning_keeps_its_markers_in_the_text() -> None:
    got = whole(HERMES, "<think>\nWell.\n</think>\n\nYes.", inline_reasoning=True)
    assert (got.reasoning, got.text) == ("", "<think>\nWell.\n</think>\n\nYes.")


def test_a_reasoning_tag_in_the_middle_of_text_is_text() -> None:
    got = whole(HERMES, "Write <think> and </think>.")
    assert (got.reasoning, got.text) == ("", "Write <think> and </think>.")


def test_tokens_inside_the_block_are_counted() -> None:
    pieces = ("<think>", "a", "b", "</think>", "c")
    apart, joined = parser(HERMES), parser(HERMES)
    for piece in pieces:
        apart.feed(piece, [(len(piece), 1)])
    joined.feed("".join(pieces), [(len(piece), 1) for piece in pieces])
    assert apart.reasoning_tokens == joined.reasoning_tokens == 3


# ── calls ─────────────────────────────────────────────────────────────────────────────────────


def test_text_before_calls_is_kept_without_the_blanks_around_markers() -> None:
    got = whole(HERMES, f"Let me see.\n\n{NOW_CALL}\n{NOW_CALL}\n")
    assert got.text.strip() == "Let me see."
    assert got.calls == (("now", "{}", True),) * 2


def test_without_tools_nothing_is_a_call() -> None:
    got = whole(HERMES, NOW_CALL, tools=())
    assert (got.text, got.calls) == (NOW_CALL, ())


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "now", "arguments": {]}\n</tool_call>',
        '<tool_call>\n{"name": "now", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "now", "arguments": {}',
        "<tool_call>\nnonsense\n</tool_call>",
        "<tool_call>",
    ],
)
def test_a_malformed_call_comes_back_as_text(text: str) -> None:
    got = whole(HERMES, f"See: {text}")
    assert got.calls == ()
    assert got.text == f"See: {text}"


def test_a_good_call_before_a_malformed_one_stays() -> None:
    got = whole(HERMES, f"{NOW_CALL}\n<tool_call>\noops")
    assert got.calls == (("now", "{}", True),)
    assert got.text == "<tool_call>\noops"


def test_constrained_arguments_stream_before_the_call_is_whole() -> None:
    reading = parser(HERMES, constrained=True)
    events = reading.feed('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Kö')
    assert any(isinstance(event, ToolCallStart) for event in events)
    got = read(parser(HERMES, constrained=True), ['<tool_call>\n{"name": "get_weather", "arguments": {"city": "Kö'])
    assert got.calls == (("get_weather", '{"city": "Kö', False),)


def test_both_generations_of_mistral_calls_are_read() -> None:
    old = whole(MISTRAL, '[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abcdefghi"}]')
    new = whole(MISTRAL, '[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]get_weather[ARGS]{"city": "x"}')
    assert old.calls == (("now", "{}", True),)
    assert new.calls == (("now", "{}", True), ("get_weather", '{"city": "x"}', True))
    assert all(len(id_) == 9 and id_.isalnum() for id_ in (*old.ids, *new.ids))


def test_bare_json_is_a_call_only_where_it_is_one() -> None:
    call = '{"name": "get_weather", "parameters": {"city": "x"}}'
    assert whole(LLAMA, call).calls == (("get_weather", '{"city": "x"}', True),)
    assert whole(LLAMA, f"<|python_tag|>{call}").calls == (("get_weather", '{"city": "x"}', True),)
    for text in ('{"answer": 42}', '{"name": "nobody", "parameters": {}}', "{not json"):
        assert whole(LLAMA, text) == Read(text=text)


def test_tagged_values_take_their_types_from_the_schema() -> None:
    got = whole(
        TAGGED,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=n>\n3\n</parameter>\n"
        "<parameter=flag>\nTrue\n</parameter>\n</function>\n</tool_call>",
    )
    assert json.loads(got.calls[0][1]) == {"city": "12", "n": 3, "flag": True}


def test_pythonic_literals_become_json() -> None:
    got = whole(
        PYTHONIC, "<|tool_call_start|>[get_weather(city='it\\'s', n=2, l=['a', \"b\"]), now()]<|tool_call_end|>"
    )
    assert json.loads(got.calls[0][1]) == {"city": "it's", "n": 2, "l": ["a", "b"]}
    assert got.calls[1] == ("now", "{}", True)


def test_braces_become_json() -> None:
    got = whole(BRACES, '<|tool_call>call:get_weather{city:<|"|>a{b<|"|>,o:{a:[1,true]}}<tool_call|>')
    assert json.loads(got.calls[0][1]) == {"city": "a{b", "o": {"a": [1, True]}}


def test_channels_tell_reasoning_calls_and_text_apart() -> None:
    got = whole(
        NAMED["gpt-oss"],
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.now "
        "<|constrain|>json<|message|>{}<|call|>",
    )
    assert (got.reasoning, got.calls) == ("Hm.", (("now", "{}", True),))
    assert whole(NAMED["gpt-oss"], "<|channel|>final<|message|>Yes.").text == "Yes."
    assert whole(NAMED["gpt-oss"], "No channel at all").text == "No channel at all"


def test_names_with_odd_characters_are_names() -> None:
    tools = (Tool(name="mcp/ns.get-it:v2"),)
    text = '<tool_call>\n{"name": "mcp/ns.get-it:v2", "arguments": {}}\n</tool_call>'
    assert whole(HERMES, text, tools=tools).calls == (("mcp/ns.get-it:v2", "{}", True),)


# ── anything at all ───────────────────────────────────────────────────────────────────────────

MARKERS = sorted(
    {
        token
        for format_ in ALL.values()
        for token in (*format_.preserved, format_.call_start, format_.call_end, format_.section_start, format_.name_end)
        if token
    }
    | {
        '{"name": "now", "arguments": {}}',
        '{"name": "now"',
        "now",
        "get_weather",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ":",
        ",",
        '"',
    }
    | {"city=", "'x'", '"city": "y"', "<parameter=city>", "functions", " to=functions.now", "assistant", "\n", " "}
)
SOUP = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=6)), max_size=25).map("".join)


@st.composite
def cut(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(SOUP)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("constrained", [False, True])
@settings(max_examples=120, deadline=None)
@given(case=cut(), opened=st.booleans(), inline=st.booleans())
def test_any_text_in_any_pieces_gives_the_same(
    name: str, constrained: bool, case: tuple[str, list[str]], opened: bool, inline: bool
) -> None:
    text, pieces = case
    options = {"reasoning_open": opened, "inline_reasoning": inline, "constrained": constrained}
    got = read(parser(ALL[name], **options), pieces)
    assert without_ids(got) == without_ids(read(parser(ALL[name], **options), [text]))
    for _, arguments, ended in got.calls:
        if ended:
            assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("name", sorted(ALL))
@settings(max_examples=120, deadline=None)
@given(case=cut())
def test_no_character_is_lost_or_given_twice(name: str, case: tuple[str, list[str]]) -> None:
    """Without calls, the text that comes out is the text that went in, but for wrappers and blanks beside them."""
    text, pieces = case
    format_ = ALL[name]
    got = read(parser(format_), pieces)
    if got.calls or format_.header is not None:
        return
    gone = [*format_.wrappers, format_.call_lead, format_.reasoning_start, format_.reasoning_end]
    text = (format_.prefill if text or format_.prefill else "") + text
    for marker in filter(None, gone):
        text = text.replace(marker.strip(), "")
    out = got.reasoning + got.text
    for marker in filter(None, gone):
        out = out.replace(marker.strip(), "")
    assert _solid(out) == _solid(text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=string.printable + "äß日本🙂", max_size=200), data=st.data())
def test_plain_text_passes_unchanged(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reading = ChatParser(Format())
    events = []
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += reading.feed(text[a:b])
    events += reading.flush()
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == text


def _solid(text: str) -> str:
    return "".join(text.split())
