"""Formats that no rendering shows, each with the reason why it must be named.

An override knows its template by a text that only that family has. It gets the derived `Format` and says only
what derivation could not see.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lmd.chat.formats import Format, JsonKeys, Style


@dataclass(frozen=True, slots=True)
class Override:
    name: str
    why: str
    marks: tuple[str, ...]
    """All of these stand in the template's source."""
    change: Callable[[Format], Format]

    def fits(self, source: str) -> bool:
        return all(mark in source for mark in self.marks)


DEFAULT_TOOLS = Format(
    style=Style.JSON,
    call_start="[TOOL_REQUEST]",
    call_end="[END_TOOL_REQUEST]",
    separator="\n",
    parallel=True,
    override="default",
)
"""The tool format for models whose template knows no tools: `lmd.chat.default_tools`."""


def _gpt_oss(format_: Format) -> Format:
    return Format(
        reasoning_start="<|channel|>analysis<|message|>",
        reasoning_end="<|end|>",
        style=Style.CHANNELS,
        call_end="<|call|>",
        prefill="<|start|>assistant",
        header=("<|start|>", "<|message|>"),
        message_ends=("<|end|>", "<|call|>", "<|return|>"),
        reasoning_headers=("analysis",),
        recipient="to=functions.",
        stops=("<|call|>", "<|return|>"),
    )


def _muse(format_: Format) -> Format:
    return replace(
        format_,
        reasoning_start="<|start|>assistant to=self<|message|>",
        reasoning_end="<|eom|>",
        text_openings=(),
        text_closings=(),
        section_start="<atem:function_calls>\n",
        section_end="\n</atem:function_calls>",
        call_start='<atem:invoke name="',
        call_end="\n</atem:invoke>",
        separator="",
        prefill="<|start|>assistant",
        header=("<|start|>", "<|message|>"),
        message_ends=("<|eom|>", "<|eot|>"),
        reasoning_headers=("to=self",),
        parallel=True,
    )


def _functionary(format_: Format) -> Format:
    return replace(
        format_,
        prefill=">>>",
        text_openings=(">>>all\n",),
        text_closings=(),
        call_start=">>>",
        separator="",
        section_start="",
    )


def _kimi(format_: Format) -> Format:
    return replace(format_, name_id=":", name_end="<|tool_call_argument_begin|>", id_form="functions.{name}:{index}")


def _kimi_k3(format_: Format) -> Format:
    return replace(
        format_,
        reasoning_start="<|open|>think<|sep|>",
        reasoning_end="<|close|>think<|sep|>",
        text_openings=("<|open|>response<|sep|>",),
        text_closings=("<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        section_start="<|open|>tools<|sep|>",
        section_end="<|close|>tools<|sep|>",
        call_start='<|open|>call tool="',
        call_end="<|close|>call<|sep|>",
        separator="",
        name_id='" index="',
        name_end='"<|sep|>',
        value_end="<|close|>argument<|sep|>",
        stops=("<|end_of_msg|>",),
    )


def _minimax_m3(format_: Format) -> Format:
    lead = "]<]minimax[>["
    return replace(
        format_,
        style=Style.ELEMENTS,
        section_start=f"{lead}<tool_call>",
        section_end=f"\n{lead}</tool_call>",
        call_start=f'\n{lead}<invoke name="',
        call_end="",
        name_end='">',
        key_start=lead,
        key_end="",
        value_end="",
        separator="",
        stops=("[e~[",),
    )


def _command_r_plus(format_: Format) -> Format:
    return Format(
        style=Style.JSON,
        json=JsonKeys(name="tool_name", arguments="parameters", array=True),
        section_start="Action:\n```json\n",
        section_end="\n```",
        stops=("<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>"),
        parallel=True,
    )


def _granite_33(format_: Format) -> Format:
    return replace(
        format_,
        text_openings=("<response>",),
        text_closings=("</response>",),
        style=Style.JSON,
        json=JsonKeys(array=True),
        section_start="<|tool_call|>",
        parallel=True,
    )


def _lfm2(format_: Format) -> Format:
    return replace(
        format_,
        style=Style.PYTHONIC,
        section_start="<|tool_call_start|>",
        section_end="<|tool_call_end|>",
        escapes=True,
        parallel=True,
    )


def _hermes(format_: Format) -> Format:
    return replace(
        format_, style=Style.JSON, call_start="<tool_call>\n", call_end="\n</tool_call>", separator="\n", parallel=True
    )


def _nemotron(format_: Format) -> Format:
    return replace(format_, text_openings=(), text_closings=(), stops=("<SPECIAL_12>",))


def _llama3(format_: Format) -> Format:
    return replace(format_, call_lead="<|python_tag|>")


OVERRIDES = (
    Override(
        "gpt-oss",
        "reasoning, text and calls are messages in channels, and a call's name stands in its message's header",
        ("<|channel|>analysis<|message|>", "<|call|>"),
        _gpt_oss,
    ),
    Override(
        "muse",
        "every message has a header with a recipient, and a call's name stands there too",
        ("to=self", "atem:function_calls"),
        _muse,
    ),
    Override(
        "functionary-v3.2",
        "the prompt ends with the marker that opens the answer's first part",
        (">>>", "all\\n"),
        _functionary,
    ),
    Override(
        "kimi-k2",
        "the id holds the name and a running number, so the rendering shows no id beside the name",
        ("<|tool_call_argument_begin|>", "functions."),
        _kimi,
    ),
    Override(
        "kimi-k3",
        "every marker is three tokens around a word, so no boundary between markers can be read off",
        ("<|open|>", "<|close|>", "<|sep|>"),
        _kimi_k3,
    ),
    Override("minimax-m3", "the arguments' names are tags, and values nest", ("]<]minimax[>[",), _minimax_m3),
    Override(
        "command-r-plus",
        "the generation prompt is text after the tools, so a rendered turn is followed by more",
        ("<|CHATBOT_TOKEN|>", "directly-answer"),
        _command_r_plus,
    ),
    Override(
        "granite-3.3",
        "calls are described in the system text, never rendered",
        ("<|tool_call|>", "<|start_of_role|>", "<response>"),
        _granite_33,
    ),
    Override("lfm2", "the tools are listed, calls are never rendered", ("<|tool_list_start|>",), _lfm2),
    Override(
        "lfm2.5", "the tools are listed, calls are never rendered", ("List of tools: [", "keep_past_thinking"), _lfm2
    ),
    Override("smollm3", "calls are described in the system text, never rendered", ("named SmolLM",), _hermes),
    Override(
        "nemotron-nano-v2",
        "a last turn is shown as the continuation of an open reasoning block, with its end twice",
        ("<SPECIAL_12>", "<TOOLCALL>"),
        _nemotron,
    ),
    Override(
        "llama-3",
        "<|python_tag|> may stand before a call, and the template shows it only for built-in tools",
        ("<|eom_id|>", "<|python_tag|>", '"parameters": '),
        _llama3,
    ),
)


def override(format_: Format, source: str) -> Format:
    """``format_`` with what the named override for this template knows better."""
    for candidate in OVERRIDES:
        if candidate.fits(source):
            return replace(candidate.change(format_), override=candidate.name)
    return format_
