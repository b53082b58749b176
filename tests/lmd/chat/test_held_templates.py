"""What the shipped templates write is what the constraints let through: answers in JSON, and calls."""

from pathlib import Path

import pytest

from lmd.chat.constraints import constrain
from lmd.generation import Message, ResponseFormat, Role, TextPart, ToolCall, ToolChoice
from tests.lmd.chat.held import refusal
from tests.lmd.chat.test_round_trip import SHOWN, rendering
from tests.lmd.chat.turns import REASONING, TOOLS, Part, read

ANSWER = '{"a": 1, "b": "x"}'
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
    "required": ["a", "b"],
}
JSON = ResponseFormat(kind="json_schema", source=SCHEMA)
CALL = ToolCall(id="call00001", name="get_weather", arguments='{"city": "Rome", "n": 1}')

WRITTEN_OTHERWISE = {
    "CohereForAI-c4ai-command-r-plus-tool_use": "the object is indented",
    "LFM2.5-8B-A1B": "strings stand in single quotes",
}
"""Calls in the template's own style are none in lmd's one style; the parser reads both."""


def from_start(part: Part, triggers: tuple[str, ...]) -> str:
    """The text that the constraint sees: from its trigger on, or from the first character."""
    text = part.text if part.format.prefill else part.text.lstrip()
    starts = [at for trigger in triggers if (at := text.find(trigger)) >= 0]
    assert bool(starts) is bool(triggers)
    text = text[min(starts, default=0) :]
    # Generation is over with the last call: what only ends the message is not written any more.
    for closing in reversed(part.format.text_closings):
        text = text.rstrip().removesuffix(closing)
    return text


@pytest.mark.parametrize("reasoning", [None, REASONING])
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_json_answer_passes_with_its_markers_and_is_read_back(
    shipped_templates: Path, name: str, reasoning: str | None
) -> None:
    answer = Message(role=Role.ASSISTANT, parts=(TextPart(ANSWER),), reasoning=reasoning)
    part = rendering(shipped_templates, name).part(answer)
    spec = constrain(part.format, response_format=JSON, reasoning_open=part.reasoning_open)
    assert spec is not None
    assert refusal(spec, from_start(part, spec.triggers)) == ""
    assert refusal(spec, from_start(part, spec.triggers).replace('"a": 1', '"a": "1"')) != ""
    assert read(part.parser(tools=()), part.text).text == ANSWER


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_call_passes_as_its_template_writes_it(shipped_templates: Path, name: str, choice: str) -> None:
    part = rendering(shipped_templates, name).part(Message(role=Role.ASSISTANT, tool_calls=(CALL,)))
    spec = constrain(
        part.format,
        tools=TOOLS,
        tool_choice=ToolChoice(choice),  # type: ignore[arg-type]
        reasoning_open=part.reasoning_open,
    )
    assert spec is not None
    text = from_start(part, spec.triggers)
    ends = {refusal(spec, text + end) for end in ("", *part.format.stops)}
    assert ("" in ends) is (name not in WRITTEN_OTHERWISE)
    assert refusal(spec, text.replace("get_weather", "nobody")) != ""
