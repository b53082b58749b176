"""Turns full of sentinels, rendered by one template: what a `Format` is read off."""

import json

from lmd.chat.formats import Format
from lmd.chat.markers import common_prefix
from lmd.chat.probe import PROBE_TIME
from lmd.chat.shape import Shape, shaped, shaped_tools
from lmd.chat.template import ChatTemplate
from lmd.errors import TemplateError
from lmd.generation import Message, Role, TextPart, Tool, ToolCall

TEXT, THOUGHT = "Qtextq", "Qthoughtq"
NAMES = ("qfirstq", "qsecondq")
IDS = ("qidone001", "qidtwo002")
KEYS = ("qkeyaq", "qkeybq")
VALUES = ("Qvalaq", "Qvalbq")
EOS = "<EOSq>"

_TOOLS = tuple(
    Tool(
        name=name,
        description="Qdescriptionq",
        parameters={
            "type": "object",
            "properties": {key: {"type": "string", "description": "Qparameterq"} for key in KEYS},
            "required": [],
            "additionalProperties": False,
        },
    )
    for name in NAMES
)


def _arguments(n: int) -> dict[str, str]:
    return dict(list(zip(KEYS, VALUES, strict=True))[:n])


class Probe:
    """Assistant turns of one template, from where the model begins to write."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.shape: Shape = template.shape
        self.base = self._render([_user()]) or ""
        with_prompt = self._render([_user()], generation_prompt=True) or ""
        self.generation = with_prompt[common_prefix(self.base, with_prompt) :]
        self.thinking_prompt = self._render([_user()], generation_prompt=True, thinking=True) or ""

    def turn(self, *, reasoning: bool = False, text: bool = False, calls: int = 0, arguments: int = 2) -> str | None:
        """The turn as the template writes it, its header included; None where the template refuses or shows less."""
        message = Message(
            role=Role.ASSISTANT,
            parts=(TextPart(TEXT),) if text else (),
            reasoning=THOUGHT if reasoning else None,
            tool_calls=tuple(
                ToolCall(id=IDS[i], name=NAMES[i], arguments=json.dumps(_arguments(arguments))) for i in range(calls)
            ),
        )
        out = self._render([_user(), message])
        if out is None or (reasoning and THOUGHT not in out) or (text and TEXT not in out):
            return None
        turn = out[common_prefix(self.base, out) :]
        if any(name not in turn for name in NAMES[:calls]):
            return None
        return turn

    def cut_before(self, end: str) -> str:
        """The prompt up to the last ``end`` in it, where every prompt ends with a closed block."""
        return self.base[: self.base.rindex(end)] if end and end in self.base[-200:] else ""

    def _render(
        self, messages: list[Message], *, generation_prompt: bool = False, thinking: bool = False
    ) -> str | None:
        try:
            return self.template.render_raw(
                shaped(messages, self.shape),
                shaped_tools(_TOOLS) if self.shape.tools else [] if self.shape.empty_tools else None,
                bos="",
                eos=EOS,
                now=PROBE_TIME,
                add_generation_prompt=generation_prompt,
                args=self.template.reasoning_args("on") if thinking or self.shape.thinking_on else None,
            )
        except TemplateError:
            return None


def _user() -> Message:
    return Message(role=Role.USER, parts=(TextPart("Quserq"),))


def header_of(probe: Probe, turn: str, format_: Format) -> int:
    """Where in ``turn`` the model's own text begins: after the generation prompt, without a reasoning block in it."""
    generation = probe.generation
    candidates = [generation]
    start, end = format_.reasoning_start, format_.reasoning_end
    if start and start in generation:
        candidates.append(generation[: generation.rindex(start)])
    if end and end in generation:
        candidates.append(generation[: generation.index(end)])
    for candidate in candidates:
        for header in (candidate, candidate.rstrip()):
            if turn.startswith(header):
                return len(header)
    return common_prefix(turn, generation)


def after_reasoning(text: str, format_: Format) -> str:
    """``text`` without a reasoning block (mostly an empty one) at its start."""
    end = format_.reasoning_end
    return text[text.rindex(end) + len(end) :] if end and end in text else text
