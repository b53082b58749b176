"""What a model can do, told from its chat template."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from lmd.api.prompt import templates_of
from lmd.errors import LmdError
from lmd.generation import ChatPrompt, Message, Role, TextPart

if TYPE_CHECKING:
    from lmd.chat.dialogue import Dialogue
    from lmd.config.preset import ChatSettings
    from lmd.library.catalog import Model


@dataclass(frozen=True, slots=True)
class ReasoningSwitch:
    """``options``: of "off", "on", "low", "medium", "high", those that make a difference. ``default``: one of them."""

    options: tuple[str, ...]
    default: str


@dataclass(frozen=True, slots=True)
class Abilities:
    tool_use: bool
    """Trained for it: the template has a format of its own for calls."""
    reasoning: ReasoningSwitch | None
    """None: the model does not reason."""


_NONE = Abilities(tool_use=False, reasoning=None)


async def abilities_of(model: Model, chat: ChatSettings) -> Abilities:
    """Of ``model`` with the template that ``chat`` may bring. A template that cannot be used gives none."""
    if model.type == "embeddings":
        return _NONE
    templates = tuple(sorted(templates_of(model, chat).items()))
    return await asyncio.to_thread(_abilities, templates)


@lru_cache(maxsize=1024)
def _abilities(templates: tuple[tuple[str, str], ...]) -> Abilities:
    """Tens of milliseconds for templates not seen before."""
    from lmd.chat.dialogue import Dialogue

    try:
        dialogue = Dialogue.of(dict(templates))
        found = dialogue.capabilities
        return Abilities(found.tool_use, _switch(dialogue) if found.reasoning else None)
    except LmdError:
        return _NONE


def _switch(dialogue: Dialogue) -> ReasoningSwitch:
    """Found by what each setting does to a small prompt."""
    template = dialogue.template
    prompt = ChatPrompt(messages=(Message(role=Role.USER, parts=(TextPart("Hello"),)),))
    now = datetime.now().astimezone()

    def text(effort: str | None) -> str:
        return template.render(prompt, now=now, reasoning=effort).text

    plain = text(None)
    texts = {option: text(option) for option in ("off", "on", "low", "medium", "high")}
    options = ["on"]
    if texts["off"] != texts["on"]:
        options.insert(0, "off")
    if len({texts[effort] for effort in ("low", "medium", "high")}) > 1:
        options += ["low", "medium", "high"]
    # An effort says more than "on", which leaves it to the template.
    likely = [option for option in ("off", "medium", "low", "high", "on") if option in options]
    return ReasoningSwitch(tuple(options), next((option for option in likely if texts[option] == plain), "on"))


def params_string(n_params: int) -> str | None:
    """``7B``, ``870K``: a count of parameters as people say it."""
    if n_params <= 0:
        return None
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_params >= factor:
            count = n_params / factor
            return f"{count:.0f}{unit}" if count >= 10 else f"{count:.1f}".removesuffix(".0") + unit
    return str(n_params)
