"""Grammars of tool calls: every style, and arguments described in every way that JSON Schema has."""

import json
from typing import Any

import pytest

from lmd.chat.constraints import constrain
from lmd.chat.parser import ChatParser
from lmd.generation import Tool, ToolChoice
from tests.lmd.chat.held import refusal, takes
from tests.lmd.chat.test_parser import ALL, HERMES
from tests.lmd.chat.turns import TOOLS, read

REQUIRED = ToolChoice("required")
STOP: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "next": {"$ref": "#/$defs/stop"}},
    "required": ["city"],
    "additionalProperties": False,
}
TRIP: dict[str, Any] = {
    "type": "object",
    "properties": {"start": {"$ref": "#/$defs/stop"}, "by": {"enum": ["train", "boat"]}},
    "required": ["start", "by"],
}

DESCRIBED = (
    {"$ref": "#/$defs/trip", "$defs": {"trip": TRIP, "stop": STOP}},
    {"allOf": [TRIP, {"required": ["start"]}], "$defs": {"stop": STOP}},
    {"anyOf": [{"type": "object", "properties": {"other": {"type": "integer"}}, "required": ["other"]}, TRIP],
     "$defs": {"stop": STOP}},
)  # fmt: skip
"""The same arguments, described in other ways."""
ARGUMENTS = {"start": {"city": "Rome", "next": {"city": "Oslo"}}, "by": "train"}
START = json.dumps(ARGUMENTS["start"])
LEAD = "]<]minimax[>["
"""What stands before every tag of MiniMax M3: ``@`` below."""

WRITTEN = {
    "hermes": f'<tool_call>\n{{"name": "go", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>',
    "tagged": f"<tool_call>\n<function=go>\n<parameter=start>\n{START}\n</parameter>\n"
    "<parameter=by>\ntrain\n</parameter>\n</function>\n</tool_call>",
    "pythonic": f'<|tool_call_start|>[go(start={START}, by="train")]<|tool_call_end|>',
    "braces": '<|tool_call>call:go{start:{city:<|"|>Rome<|"|>,next:{city:<|"|>Oslo<|"|>}},by:<|"|>train<|"|>}'
    "<tool_call|>",
    "minimax-m3": '@<tool_call>\n@<invoke name="go">@<start>@<city>Rome@</city>@<next>@<city>Oslo@</city>@</next>'
    "@</start>@<by>train@</by>@</invoke>\n@</tool_call>",
}


@pytest.mark.parametrize("schema", DESCRIBED)
@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_arguments_are_held_however_they_were_described(name: str, schema: Any) -> None:
    text = WRITTEN[name].replace("@", LEAD)
    tools = (Tool(name="go", parameters=schema),)
    spec = constrain(ALL[name], tools=tools, tool_choice=REQUIRED)
    assert refusal(spec, text) == ""
    assert not takes(spec, text.replace("Oslo", "Lima"))
    assert not takes(spec, text.replace("train", "foot"))
    parser = ChatParser(ALL[name], tools=tools, constrained=True, prefill=ALL[name].prefill)
    ((_, arguments, ended),) = read(parser, text).calls
    assert (json.loads(arguments), ended) == (ARGUMENTS, True)


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
    for opened in (False, True):
        spec = constrain(ALL[name], tools=TOOLS, tool_choice=ToolChoice(mode), reasoning_open=opened)
        assert spec is not None
        assert mode == "auto" or not takes(spec, "?")
