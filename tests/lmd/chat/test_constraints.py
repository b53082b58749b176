"""Constraints: what the grammar takes and refuses, and what is refused before anything is generated."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from lmd.chat.constraints import ConstraintSpec, constrain
from lmd.chat.dialogue import Dialogue
from lmd.chat.formats import Format
from lmd.chat.overrides import DEFAULT_TOOLS
from lmd.engine.marked import resolve_markers
from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import ChatPrompt, Message, ResponseFormat, Role, TextPart, Tool, ToolChoice
from tests.lmd.chat.test_parser import ALL, HERMES
from tests.lmd.chat.turns import NOW, TOOLS, read

BYTES = LLTokenizer("byte")
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
REQUIRED, AUTO = ToolChoice("required"), ToolChoice("auto")


def takes(spec: ConstraintSpec | None, text: str) -> bool:
    """Whether ``text`` is a whole answer under the constraint, for a vocabulary without control tokens."""
    assert spec is not None
    assert spec.kind == "lark"
    grammar = LLMatcher.grammar_from_lark(resolve_markers(spec.source, lambda text: None))
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


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
    assert spec.whole_calls
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


def test_an_unsupported_keyword_is_named_with_its_path() -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(Unsupported, match=r"'uniqueItems' at .*properties\.tags") as caught:
        constrain(Format(), response_format=ResponseFormat(kind="json_schema", source=schema))
    assert caught.value.param == "response_format.json_schema.schema.properties.tags"
    with pytest.raises(Unsupported, match="uniqueItems"):
        constrain(HERMES, tools=(Tool(name="f", parameters=schema),))


@pytest.mark.parametrize("source", ["start: missing", "nonsense", 'start: "a'])
def test_a_broken_grammar_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest):
        constrain(Format(), response_format=ResponseFormat(kind="lark", source=source))


def test_definitions_and_recursion_are_honoured() -> None:
    schema = {
        "type": "object",
        "properties": {"node": {"$ref": "#/$defs/node"}},
        "required": ["node"],
        "$defs": {
            "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
        },
    }
    spec = constrain(HERMES, tools=(Tool(name="f", parameters=schema),), tool_choice=REQUIRED)
    assert takes(spec, '<tool_call>\n{"name": "f", "arguments": {"node": {"next": {"next": {}}}}}\n</tool_call>')
    assert not takes(spec, '<tool_call>\n{"name": "f", "arguments": {"node": {"next": 1}}}\n</tool_call>')


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_every_style_has_a_grammar(name: str, mode: Any) -> None:
    spec = constrain(ALL[name], tools=TOOLS, tool_choice=ToolChoice(mode))
    assert spec is not None
    LLMatcher(BYTES, LLMatcher.grammar_from_lark(resolve_markers(spec.source, lambda text: None)), log_level=0)


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
    assert Dialogue.of({}).capabilities.template == "chatml"


def test_a_tool_choice_that_names_no_tool_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nobody"):
        ask(None, tool_choice=ToolChoice("named", "nobody"))


def test_schemas_of_the_turn_reach_the_model_as_they_are(tiny_template: str) -> None:
    assert json.dumps(TOOLS[0].parameters) in ask(tiny_template).text
