"""Constraints: what the grammar takes and refuses, and what is refused before anything is generated."""

import json
from typing import Any

import pytest

from lmd.chat.constraints import constrain
from lmd.chat.dialogue import Dialogue
from lmd.chat.formats import Format, Style
from lmd.chat.overrides import DEFAULT_TOOLS
from lmd.chat.parser import ChatParser
from lmd.engine.marked import resolve_markers
from lmd.errors import InvalidRequest
from lmd.generation import ChatPrompt, Message, ResponseFormat, Role, TextPart, ToolChoice
from tests.lmd.chat.held import takes
from tests.lmd.chat.test_parser import ALL, HERMES
from tests.lmd.chat.turns import NOW, TOOLS, read

NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
REQUIRED, AUTO = ToolChoice("required"), ToolChoice("auto")


def test_required_takes_a_call_and_nothing_else() -> None:
    spec = constrain(HERMES, tools=TOOLS, tool_choice=REQUIRED)
    assert takes(spec, NOW_CALL)
    assert takes(spec, f"{NOW_CALL}\n{NOW_CALL}")
    assert takes(spec, f"<think>Hm.</think>\n\n{NOW_CALL}")
    assert not takes(spec, "Hello")
    assert not takes(spec, NOW_CALL.replace("now", "never"))


def test_without_parallel_calls_there_is_one() -> None:
    spec = constrain(HERMES, tools=TOOLS, tool_choice=REQUIRED, parallel=False)
    assert takes(spec, NOW_CALL)
    assert not takes(spec, f"{NOW_CALL}\n{NOW_CALL}")


def test_a_named_tool_is_the_only_one() -> None:
    spec = constrain(HERMES, tools=TOOLS, tool_choice=ToolChoice("named", "get_weather"))
    assert takes(spec, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "x", "n": 1}}\n</tool_call>')
    assert not takes(spec, NOW_CALL)
    assert not takes(spec, '<tool_call>\n{"name": "get_weather", "arguments": {"n": 1}}\n</tool_call>')


def test_auto_waits_for_the_model_to_open_a_call() -> None:
    spec = constrain(HERMES, tools=TOOLS, tool_choice=AUTO)
    assert spec is not None
    assert spec.triggers == ("<tool_call>",)
    assert takes(spec, NOW_CALL)


def test_none_leaves_the_answer_free() -> None:
    assert constrain(HERMES, tools=TOOLS, tool_choice=ToolChoice("none")) is None


def test_json_is_in_one_fixed_style_and_may_follow_reasoning() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a", "b"],
    }
    wanted = ResponseFormat(kind="json_schema", source=schema)
    spec = constrain(HERMES, response_format=wanted)
    assert takes(spec, '{"a": 1, "b": "x"}')
    assert takes(spec, '<think>Hm.</think>\n{"a": 1, "b": "x"}')
    assert not takes(spec, '{"a":1,\n"b":"x"}')
    assert not takes(spec, "Sure!")
    opened = constrain(HERMES, response_format=wanted, reasoning_open=True)
    assert opened is not None
    assert opened.triggers == ("</think>",)
    assert takes(opened, '</think>\n\n{"a": 1, "b": "x"}')


def test_an_answer_may_be_a_call_or_the_wanted_json() -> None:
    spec = constrain(HERMES, tools=TOOLS, response_format=ResponseFormat(kind="json_object"))
    assert takes(spec, NOW_CALL)
    assert takes(spec, '{"x": [1]}')
    assert not takes(spec, "text")


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("regex", "[a-c]+/x", "abc/x", "abd/x"),
        ("lark", 'start: "yes" | "no"', "yes", "maybe"),
        ("gbnf", 'root ::= "yes" | "no"', "no", "maybe"),
    ],
)
def test_plain_grammars_are_held(kind: Any, source: str, good: str, bad: str) -> None:
    spec = constrain(Format(), response_format=ResponseFormat(kind=kind, source=source))
    assert takes(spec, good)
    assert not takes(spec, bad)


@pytest.mark.parametrize("source", ["start: missing", "nonsense", 'start: "a'])
def test_a_broken_grammar_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest):
        constrain(Format(), response_format=ResponseFormat(kind="lark", source=source))


# ── calls that no marker opens ────────────────────────────────────────────────────────────────


def test_bare_calls_are_held_where_an_answer_begins_and_text_is_free() -> None:
    spec = constrain(ALL["llama"], tools=TOOLS)
    assert spec is not None and not spec.triggers
    assert takes(spec, '{"name": "now", "parameters": {}}')
    assert takes(spec, '<|python_tag|>{"name": "now", "parameters": {}}')
    assert not takes(spec, '{"name": "nobody", "parameters": {}}')
    for text in ("", "Hi", '{"answer": 1}', 'Such as {"name": "nobody"}.'):
        assert takes(spec, text)


def test_a_recipient_spoken_of_while_thinking_is_no_call() -> None:
    spec = constrain(ALL["gpt-oss"], tools=TOOLS)
    assert spec is not None and not spec.triggers
    thought = "<|channel|>analysis<|message|>I could ask to=functions.now or to=functions.x.<|end|><|start|>assistant"
    assert takes(spec, f"{thought}<|channel|>final<|message|>No, to=functions.x is none.")
    for header in (
        "<|channel|>commentary to=functions.now <|constrain|>json",
        " to=functions.now<|channel|>commentary json",
    ):
        assert takes(spec, f"{thought}{header}<|message|>{{}}<|call|>")
        assert takes(spec, f"{header}<|message|>{{}}<|call|>")
        assert not takes(spec, f"{header.replace('now', 'x')}<|message|>{{}}<|call|>")
    preamble = "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
    assert takes(spec, f"{preamble}<|channel|>commentary to=functions.now<|message|>{{}}<|call|>")


def test_the_default_formats_marker_may_be_spoken_of() -> None:
    spec = constrain(DEFAULT_TOOLS, tools=TOOLS)
    assert spec is not None
    assert not any(trigger in "I shall write a [TOOL_REQUEST] block." for trigger in spec.triggers)
    for blank in ("", " ", "\n"):
        call = f'[TOOL_REQUEST]{blank}{{"name": "now", "arguments": {{}}}}[END_TOOL_REQUEST]'
        assert call.startswith(spec.triggers)
        assert takes(spec, call)


def test_a_call_without_its_section_is_held_too() -> None:
    kimi = Format(style=Style.NAME_JSON, section_start="<|calls|>", section_end="<|/calls|>", call_start="<|call|>",
                  call_end="<|/call|>", name_end="<|args|>", parallel=True)  # fmt: skip
    spec = constrain(kimi, tools=TOOLS)
    assert spec is not None
    assert spec.triggers == ("<|calls|>", "<|call|>")
    call = "<|call|>now<|args|>{}<|/call|>"
    assert takes(spec, call * 2)
    assert takes(spec, f"<|calls|>{call * 2}<|/calls|>")
    assert not takes(spec, call.replace("now", "never"))


def test_a_required_call_may_end_open_reasoning() -> None:
    spec = constrain(HERMES, tools=TOOLS, tool_choice=REQUIRED, reasoning_open=True)
    assert spec is not None
    assert spec.triggers == ("</think>", "<tool_call>")
    assert takes(spec, f"</think>\n\n{NOW_CALL}")
    assert takes(spec, NOW_CALL)
    assert not takes(spec, "</think>Hello")


# ── answers between markers ───────────────────────────────────────────────────────────────────


def test_an_answer_may_stand_between_its_markers() -> None:
    format_ = Format(text_openings=("<|START|>",), text_closings=("<|END|>", "<|over|>"))
    spec = constrain(format_, response_format=ResponseFormat(kind="regex", source="[ab]"))
    for text in ("a", "<|START|>a", "<|START|>a<|END|>", "<|START|>a<|END|><|over|>"):
        assert takes(spec, text)
        assert read(ChatParser(format_), text).text == "a"
    assert not takes(spec, "<|START|>c<|END|>")


@pytest.mark.parametrize(
    ("source", "text"),
    [("a/b", "a/b"), (r"a\/b", "a/b"), (r"a\\/b", "a\\/b"), ("[/x]y", "/y"), ("a\nb", "a\nb"), ("", "")],
)
def test_a_regex_may_hold_what_would_end_it(source: str, text: str) -> None:
    spec = constrain(HERMES, response_format=ResponseFormat(kind="regex", source=source))
    assert takes(spec, text)
    assert not takes(spec, text + "!")


def test_a_clients_grammar_keeps_its_names_and_words() -> None:
    source = 'root ::= answer | calls\nanswer ::= "we start now"\ncalls ::= "b/c start" [start]'
    wanted = ResponseFormat(kind="gbnf", source=source)
    for tools in ((), TOOLS):
        spec = constrain(HERMES, tools=tools, response_format=wanted)
        assert takes(spec, "we start now")
        assert takes(spec, "b/c startr")
        assert not takes(spec, "we lmd_wanted now")


def test_the_default_formats_required_call_is_read_back() -> None:
    text = '[TOOL_REQUEST]{"name": "now", "arguments": {}}[END_TOOL_REQUEST]'
    assert takes(constrain(DEFAULT_TOOLS, tools=TOOLS, tool_choice=REQUIRED), text)


def test_markers_become_tokens_where_the_vocabulary_has_them() -> None:
    source = 'start: %%"<a>"%% %%until "</a>"%% %%"b"%%'
    assert resolve_markers(source, {"<a>": 7, "</a>": 8}.get) == 'start: <[7]> (/(.|\\n)*/ <[8]>) "b"'
    assert 'until_0[suffix="</a>"]' in resolve_markers(source, lambda text: None)


# ── the whole way of a turn ───────────────────────────────────────────────────────────────────


def ask(template: str | None, **prompt: Any) -> Any:
    dialogue = Dialogue.of({"chat_template": template} if template else {})
    request = ChatPrompt(messages=(Message(role=Role.USER, parts=(TextPart("Hi"),)),), tools=TOOLS, **prompt)
    return dialogue.prepare(request, bos="", eos="", now=NOW)


def test_the_tiny_model_speaks_its_own_format(tiny_template: str) -> None:
    turn = ask(tiny_template, tool_choice=REQUIRED)
    assert '"name": "get_weather"' in turn.text
    assert "<tool_call>" in turn.preserved
    assert takes(turn.constraint, NOW_CALL)
    assert read(turn.parser(), [NOW_CALL]).calls == (("now", "{}", True),)


def test_a_model_without_tools_is_told_of_them_in_the_default_format() -> None:
    turn = ask(None)
    assert "[TOOL_REQUEST]" in turn.text
    assert all(tool.name in turn.text for tool in TOOLS)
    assert not Dialogue.of({}).capabilities.tool_use


def test_a_tool_choice_that_names_no_tool_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nobody"):
        ask(None, tool_choice=ToolChoice("named", "nobody"))


def test_schemas_of_the_turn_reach_the_model_as_they_are(tiny_template: str) -> None:
    assert json.dumps(TOOLS[0].parameters) in ask(tiny_template).text
