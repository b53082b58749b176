"""One model's way of chatting: its templates, the format derived from each, and how a request becomes a turn."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from lmd.chat.constraints import ConstraintSpec, constrain
from lmd.chat.control import ControlTexts, Guard, Part
from lmd.chat.default_tools import described
from lmd.chat.derive import derive
from lmd.chat.formats import Format
from lmd.chat.overrides import DEFAULT_TOOLS, override
from lmd.chat.parser import ChatParser
from lmd.chat.template import ChatTemplate
from lmd.errors import InvalidRequest
from lmd.generation import ChatPrompt, Tool

_CACHED = 64
_cache: "OrderedDict[tuple[tuple[str, str], ...], Dialogue]" = OrderedDict()
_cache_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    tool_use: bool
    """The model was trained to call tools (its own format is known). Others are served through the default format."""
    reasoning: bool
    parallel_tool_calls: bool
    format: str
    """The style of its tool calls, with the override's name where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A conversation as the model is given it, and how its answer is read. ``parser`` makes a fresh parser."""

    text: str
    parts: tuple[Part, ...]
    """``text``, cut where control texts are the client's words and no tokens."""
    format: Format
    preserved: tuple[str, ...]
    stop: tuple[str, ...]
    constraint: ConstraintSpec | None
    tools: tuple[Tool, ...]
    reasoning_open: bool
    inline_reasoning: bool
    constrained_calls: bool

    def parser(self, choice: int = 0) -> ChatParser:
        return ChatParser(
            self.format,
            tools=self.tools,
            reasoning_open=self.reasoning_open,
            inline_reasoning=self.inline_reasoning,
            constrained=self.constrained_calls,
            prefill=self.format.prefill,
            choice=choice,
        )


class _Voice:
    """One template with its format; both are found out on first use."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._lock = threading.Lock()

    @cached_property
    def format(self) -> Format:
        with self._lock:
            return override(derive(self.template), self.template.source)

    @property
    def native(self) -> bool:
        return self.format.tool_use

    @property
    def spoken(self) -> Format:
        """The format that answers are read in: the default tool format where the model has none of its own."""
        own = self.format
        if own.tool_use:
            return own
        return replace(
            DEFAULT_TOOLS,
            reasoning_start=own.reasoning_start,
            reasoning_end=own.reasoning_end,
            text_openings=own.text_openings,
            text_closings=own.text_closings,
            text_start=own.text_start,
            stops=own.stops,
        )


class Dialogue:
    """A model's templates. `of` caches by their texts: analysing one takes tens of milliseconds."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        plain = templates.get("chat_template") or templates.get("default")
        tools = next((source for name, source in templates.items() if name.endswith("tool_use")), None)
        plain = plain or next(iter(templates.values()), None)
        self._plain = _Voice(ChatTemplate(plain) if plain else ChatTemplate.chatml())
        self._tools = _Voice(ChatTemplate(tools, name="tool_use")) if tools and tools != plain else self._plain

    @classmethod
    def of(cls, templates: Mapping[str, str]) -> "Dialogue":
        """`TemplateError` when a template is no valid Jinja."""
        key = tuple(sorted(templates.items()))
        with _cache_lock:
            if (found := _cache.get(key)) is not None:
                _cache.move_to_end(key)
                return found
        made = cls(templates)
        with _cache_lock:
            _cache[key] = made
            while len(_cache) > _CACHED:
                _cache.popitem(last=False)
        return made

    @property
    def template(self) -> ChatTemplate:
        """The one for conversations without tools."""
        return self._plain.template

    @property
    def capabilities(self) -> Capabilities:
        """Analyses the templates on first use (tens of milliseconds)."""
        format_ = self._tools.format
        return Capabilities(
            tool_use=format_.tool_use,
            reasoning=self._plain.format.reasoning or format_.reasoning,
            parallel_tool_calls=format_.parallel or not format_.tool_use,
            format=f"{format_.style}/{format_.override}" if format_.override else str(format_.style),
        )

    def prepare(
        self,
        prompt: ChatPrompt,
        *,
        bos: str = "",
        eos: str = "",
        now: datetime,
        reasoning: str | None = None,
        inline_reasoning: bool = False,
        control: ControlTexts | None = None,
    ) -> Turn:
        """Render ``prompt`` and choose how its answer is read and constrained. Blocks: call it in a thread.

        ``reasoning`` is the preset's setting ("auto", "on", "off" or an effort); the request's own wins.
        ``control``: the vocabulary's control texts, which stay text where the conversation has them.
        `TemplateError`, `InvalidRequest`, `Unsupported` before anything is generated.
        """
        _check_tools(prompt)
        tools = prompt.tools if prompt.tool_choice.mode != "none" else ()
        uses_tools = bool(tools) or any(message.tool_calls for message in prompt.messages)
        voice = self._tools if uses_tools else self._plain
        format_, shape = voice.spoken, voice.template.shape
        shown = described(
            prompt,
            format_,
            tools=shape.tools and voice.native,
            calls=bool(shape.calls) and voice.native,
            results=shape.results and voice.native,
        )
        rendered = voice.template.render(
            shown,
            bos=bos,
            eos=eos,
            now=now,
            reasoning=reasoning,
            guard=Guard(control) if control else None,
            markers=(format_.reasoning_start, format_.reasoning_end),
        )
        text = rendered.text
        reasoning_open = format_.opens_reasoning(text)
        constraint = constrain(
            format_,
            tools=tools,
            tool_choice=prompt.tool_choice,
            parallel=prompt.parallel_tool_calls,
            response_format=prompt.response_format,
            reasoning_open=reasoning_open,
        )
        return Turn(
            text=text,
            parts=rendered.parts,
            format=format_,
            preserved=format_.preserved if tools or format_.reasoning or format_.wrappers or format_.header else (),
            stop=format_.stops,
            constraint=constraint,
            tools=tools,
            reasoning_open=reasoning_open,
            inline_reasoning=inline_reasoning,
            constrained_calls=constraint is not None,
        )


def _check_tools(prompt: ChatPrompt) -> None:
    seen: set[str] = set()
    for index, tool in enumerate(prompt.tools):
        if not tool.name:
            raise InvalidRequest("A tool has no name.", param=f"tools.{index}.function.name")
        if tool.name in seen:
            raise InvalidRequest(f"Two tools are named '{tool.name}'.", param=f"tools.{index}.function.name")
        seen.add(tool.name)
    choice = prompt.tool_choice
    if choice.mode == "named" and choice.name not in seen:
        raise InvalidRequest(
            f"tool_choice names '{choice.name}', which is not among the tools.",
            hint=f"The tools are: {', '.join(sorted(seen)) or 'none'}.",
            param="tool_choice",
        )
    if choice.mode == "required" and not prompt.tools:
        raise InvalidRequest("tool_choice is 'required', but there are no tools.", param="tool_choice")
