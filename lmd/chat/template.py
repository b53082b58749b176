"""A model's own chat template: compiled once, probed once, rendered for every request."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import TemplateSyntaxError, meta

from lmd.chat.control import Guard, Part
from lmd.chat.probe import probe
from lmd.chat.sandbox import MAX_SOURCE, ChatEnvironment, CutOff, Refused, bounded, check_size, strftime_now
from lmd.chat.shape import Shape, shaped, shaped_tools
from lmd.errors import TemplateError
from lmd.generation import ChatPrompt

RENDER_SECONDS = 10.0
"""Wall time after which a rendering is cut off. A 128 k-token conversation takes well under a second."""

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""What a model without a template gets."""

OFF = frozenset({"none", "off", "disabled", "false"})


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt's text, control tokens and BOS included (where the template writes them).

    ``parts``: the same text, cut so that what the client sent is in parts where control texts are no tokens.
    """

    text: str
    parts: tuple[Part, ...]


class ChatTemplate:
    """One template. Instances are immutable to their users and may be shared between threads.

    ``name`` tells people where the source came from. `TemplateError` when the source is no valid Jinja.
    """

    def __init__(self, source: str, *, name: str = "chat_template") -> None:
        self.source = source
        self.name = name
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"The chat template '{name}' is larger than {MAX_SOURCE} bytes.")
        self._environment = ChatEnvironment()
        try:
            with bounded(RENDER_SECONDS):
                self._compiled = self._environment.from_string(source)
                self.variables = frozenset(meta.find_undeclared_variables(self._environment.parse(source)))
        except TemplateSyntaxError as exc:
            raise TemplateError(
                f"The chat template '{name}' is not valid: line {exc.lineno}: {exc.message}.",
                hint="Set template_file in the [chat] section of a preset to a corrected template.",
            ) from exc
        except (JinjaError, RecursionError, ValueError, TypeError, SyntaxError, MemoryError) as exc:
            raise TemplateError(f"The chat template '{name}' cannot be compiled: {exc}.") from exc
        self._probing = threading.Lock()

    @classmethod
    def chatml(cls) -> "ChatTemplate":
        return cls(CHATML, name="ChatML")

    @cached_property
    def shape(self) -> Shape:
        """What the template wants; found by a few dozen small renderings on first use (tens of milliseconds)."""
        with self._probing:
            return probe(self)

    def render(
        self,
        prompt: ChatPrompt,
        *,
        bos: str = "",
        eos: str = "",
        now: datetime,
        reasoning: str | None = None,
        add_generation_prompt: bool = True,
        guard: Guard | None = None,
        markers: Sequence[str] = (),
    ) -> Rendered:
        """The prompt's text. Blocks for as long as the conversation is long: call it with `asyncio.to_thread`.

        ``reasoning`` is the effort asked for ("none"/"off" turns it off, "on", "auto", "low" …); the prompt's own
        ``reasoning_effort`` wins, and ``template_args`` win over both. Tools are left out with tool_choice "none".
        `TemplateError` with the template's own message when it refuses the conversation.
        ``guard`` keeps control tokens the template's own; ``markers`` are those of reasoning, as `Guard.shield` has it.
        """
        effort = prompt.reasoning_effort or reasoning
        tools = shaped_tools(prompt.tools, self.shape) if prompt.tools and prompt.tool_choice.mode != "none" else None
        if tools is None and self.shape.empty_tools:
            tools = []
        messages = shaped(prompt.messages, self.shape)
        args = {**self.reasoning_args(effort), **prompt.template_args}

        def plain() -> str:
            return self.render_raw(
                messages, tools, bos=bos, eos=eos, now=now, add_generation_prompt=add_generation_prompt, args=args
            )

        if guard is None:
            text = plain()
            return Rendered(text, ((text, True),))
        shielded, shielded_tools, shielded_args = guard.shield(messages, tools, args, markers)
        if not guard.shielded:
            text = plain()
            return Rendered(text, ((text, True),))
        text = self.render_raw(
            shielded,
            shielded_tools,
            bos=bos,
            eos=eos,
            now=now,
            add_generation_prompt=add_generation_prompt,
            args=shielded_args,
        )
        # A "<" at an end is no danger by itself, and templates may treat it otherwise than its stand-in.
        if not guard.spelled and guard.says_the_same(unguarded := plain(), text):
            return Rendered(unguarded, ((unguarded, True),))
        parts = guard.parts(text)
        return Rendered("".join(part for part, _ in parts), parts)

    def reasoning_args(self, effort: str | None) -> dict[str, Any]:
        """The template variables that carry ``effort``: only those that this template reads."""
        if effort is None or effort == "auto":
            return {}
        on = effort not in OFF
        args: dict[str, Any] = {"enable_thinking": on, "thinking": on}
        for mode in ("enabled", "thinking") if on else ("disabled", "chat"):
            if f'"{mode}"' in self.source or f"'{mode}'" in self.source:
                args.setdefault("thinking_mode", mode)
        if on and effort != "on":
            args["reasoning_effort"] = effort
        if not on:
            args["thinking_budget"] = 0
            if "'none'" in self.source or '"none"' in self.source:
                args["reasoning_effort"] = "none"
        return {name: value for name, value in args.items() if name in self.variables}

    def render_raw(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        bos: str = "",
        eos: str = "",
        now: datetime,
        add_generation_prompt: bool = True,
        args: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages that already have the template's shape. Errors as `render`."""
        if "functions" in self.variables:
            # Firefunction reads the definitions as one JSON text.
            args = {"functions": json.dumps(list(tools or ()), indent=4), **(args or {})}
        variables: dict[str, Any] = {
            "strftime_now": strftime_now(now),
            "date_string": now.strftime("%d %b %Y"),
            "datetime": now.strftime("%b %d %Y %H:%M:%S GMT"),
            **(args or {}),
            "messages": messages,
            "tools": tools,
            "documents": None,
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with bounded(RENDER_SECONDS):
                return self._join(variables)
        except Refused as exc:
            raise TemplateError(f"The model's chat template refused the conversation: {exc}", param="messages") from exc
        except CutOff as exc:
            raise TemplateError(
                f"The model's chat template does not come to an end: {exc}.",
                hint="Set template_file in the [chat] section of a preset to another template.",
            ) from exc
        except (JinjaError, RecursionError, MemoryError, ArithmeticError, LookupError) as exc:
            raise TemplateError(self._failure(exc), param="messages") from exc
        except (TypeError, ValueError, AttributeError, RuntimeError) as exc:
            raise TemplateError(self._failure(exc), param="messages") from exc

    def _join(self, variables: dict[str, Any]) -> str:
        context = self._compiled.new_context(variables)
        pieces: list[str] = []
        size = 0
        for piece in self._compiled.root_render_func(context):
            size += len(piece)
            check_size(size)
            pieces.append(piece)
        return "".join(pieces)

    def _failure(self, exc: BaseException) -> str:
        reason = str(exc) or type(exc).__name__
        return f"The model's chat template failed on this conversation: {type(exc).__name__}: {reason}"
