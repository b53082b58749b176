"""Rendering: the environment, message shapes, refusals, and an end to every template."""

import time
from datetime import datetime

import pytest

from lmd.chat.template import ChatTemplate
from lmd.errors import TemplateError
from lmd.generation import ChatPrompt, Message, Role, TextPart, Tool, ToolCall, ToolChoice

NOW = datetime(2026, 11, 22, 20, 0)


def said(role: Role, text: str) -> Message:
    return Message(role=role, parts=(TextPart(text),))


def rendered(source: str, *messages: Message, reasoning: str | None = None, **prompt: object) -> str:
    request = ChatPrompt(messages=messages or (said(Role.USER, "Hi"),), **prompt)  # type: ignore[arg-type]
    return ChatTemplate(source).render(request, bos="<s>", eos="</s>", now=NOW, reasoning=reasoning).text


LOOP = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"


def test_a_model_without_a_template_gets_chatml() -> None:
    template = ChatTemplate.chatml()
    text = template.render(ChatPrompt(messages=(said(Role.SYSTEM, "S"), said(Role.USER, "U"))), now=NOW).text
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_the_environment_is_hugging_faces() -> None:
    source = (
        "{{ bos_token }}{{ {'a': '<é>'} | tojson }}|{{ [1] | tojson(indent=1) }}|{{ strftime_now('%d.%m.%Y') }}|"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}|"
        "{% generation %}g{% endgeneration %}{{ eos_token }}"
    )
    assert rendered(source) == '<s>{"a": "<é>"}|[\n 1\n]|22.11.2026|01|g</s>'


def test_developer_becomes_system() -> None:
    assert rendered(LOOP, said(Role.DEVELOPER, "D"), said(Role.USER, "U")) == "[system:D][user:U]"


def test_a_system_message_is_folded_where_the_template_refuses_it() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LOOP
    assert rendered(source, said(Role.SYSTEM, "S"), said(Role.USER, "U")) == "[user:S\n\nU]"


def test_roles_are_joined_where_the_template_wants_them_to_alternate() -> None:
    source = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('alternate!') }}{% endif %}{% endfor %}" + LOOP
    )
    assert rendered(source, said(Role.USER, "A"), said(Role.USER, "B")) == "[user:A\n\nB]"


def test_content_is_given_as_parts_where_the_template_reads_parts() -> None:
    source = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    assert rendered(source, said(Role.USER, "Hi")) == "Hi"


@pytest.mark.parametrize("shown", ["call.function.arguments | tojson", "call.function.arguments"])
def test_arguments_are_an_object_or_text_as_the_template_wants(shown: str) -> None:
    source = (
        "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ call.function.name + '=' }}{{ " + shown + " }}"
        "{% endfor %}{{ m.content or '' }}{% endfor %}"
    )
    call = ToolCall(id="c", name="f", arguments='{"a": 1}')
    assert rendered(source, said(Role.USER, ""), Message(role=Role.ASSISTANT, tool_calls=(call,))) == 'f={"a": 1}'


def test_a_template_that_raises_gives_its_message() -> None:
    with pytest.raises(TemplateError, match="only even numbers"):
        rendered("{{ raise_exception('only even numbers of tools') }}")


def test_a_broken_template_names_the_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        ChatTemplate("a\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% set ns = namespace(s='x') %}{% for a in range(99999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99999) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 9 ** 99999999 }}",
        "{{ 'x' | center(10 ** 12) }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ '%1000000000000d' % 1 }}",
        "{{ '{:1000000000000}'.format(1) }}",
        "{% set x = 'a' * 10000 %}{{ x | replace('a', x) | replace('a', x) }}",
        "{% set l = [1] %}{% for x in l %}{{ l.append(x) or '' }}{% endfor %}",
        "{% for x in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    ],
)
def test_a_template_without_end_is_cut_off(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmd.chat.template.RENDER_SECONDS", 0.5)
    with pytest.raises(TemplateError):
        ChatTemplate(source).render_raw([], None, now=NOW)


def test_a_template_cannot_reach_the_interpreter() -> None:
    with pytest.raises(TemplateError):
        rendered("{{ messages.__class__.__mro__[1].__subclasses__() }}")


def test_a_long_conversation_renders_well_inside_the_limits() -> None:
    long = [said(Role.USER if i % 2 == 0 else Role.ASSISTANT, "word " * 200) for i in range(2000)]
    begin = time.monotonic()
    assert len(rendered(LOOP, *long)) > 2_000_000
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("reasoning", "effort", "shown"),
    [("off", None, "False"), ("on", None, "True"), ("on", "none", "False"), (None, None, "")],
)
def test_the_reasoning_setting_reaches_the_template(reasoning: str | None, effort: str | None, shown: str) -> None:
    assert rendered("{{ enable_thinking }}", reasoning=reasoning, reasoning_effort=effort) == shown


def test_template_args_win_over_settings() -> None:
    assert rendered("{{ enable_thinking }}", reasoning="on", template_args={"enable_thinking": False}) == "False"


def test_tools_reach_the_template_whole_and_not_with_choice_none() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}
    tools = (Tool(name="f", parameters=schema), Tool(name="g"))
    source = "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters | tojson }}{% endfor %}"
    text = rendered(source, tools=tools)
    assert '"$defs": {"A": {"type": "string"}}' in text
    assert 'g{"type": "object", "properties": {}}' in text
    assert rendered(source, tools=tools, tool_choice=ToolChoice("none")) == ""
