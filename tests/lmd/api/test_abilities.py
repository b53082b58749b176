"""What a template shows of a model's abilities."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lmd.api.abilities import Abilities, ReasoningSwitch, abilities_of, params_string
from lmd.config.preset import ChatSettings
from lmd.library.gguf import read_header

TINY = Path(__file__).parents[2] / "models" / "tiny-chat.gguf"
OPENING = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|bot|>"


async def of(template: str) -> Abilities:
    model: Any = SimpleNamespace(type="llm", header=SimpleNamespace(values={}))
    return await abilities_of(model, ChatSettings(template=template))


async def test_the_tiny_model_calls_tools_and_thinks_when_asked() -> None:
    model = cast("Any", SimpleNamespace(type="llm", header=read_header(TINY)))
    assert await abilities_of(model, ChatSettings()) == Abilities(
        tool_use=True, reasoning=ReasoningSwitch(("off", "on"), "off")
    )


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("{% endif %}", None),
        ("<think>\n{% endif %}", ReasoningSwitch(("on",), "on")),
        ("{% if enable_thinking is not defined or enable_thinking %}<think>\n{% else %}<think></think>{% endif %}"
         "{% endif %}", ReasoningSwitch(("off", "on"), "on")),
        ("{{ reasoning_effort | default('medium') }}<think>\n{% endif %}",
         ReasoningSwitch(("on", "low", "medium", "high"), "medium")),
    ],
)  # fmt: skip
async def test_the_reasoning_switch_is_what_makes_a_difference(end: str, expected: ReasoningSwitch | None) -> None:
    assert (await of(OPENING + end)).reasoning == expected


async def test_a_template_that_cannot_be_used_has_no_abilities() -> None:
    assert await of("{% if %}") == Abilities(tool_use=False, reasoning=None)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, None), (999, "999"), (869_504, "870K"), (7_240_000_000, "7.2B"), (2_000_000_000, "2B"),
     (70_600_000_000, "71B"), (1_000_000_000_000, "1T")],
)  # fmt: skip
def test_parameters_are_counted_as_people_do(count: int, text: str | None) -> None:
    assert params_string(count) == text
