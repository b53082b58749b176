"""One preset file: its schema, and how it becomes a `Preset`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmd.generation import SamplingParams
from lmd.loading import LoadParams

Reasoning = Literal["auto", "on", "off", "none", "minimal", "low", "medium", "high"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSettings:
    system_prompt: str | None = None
    """Goes before a conversation that brings no system message of its own."""
    template_file: Path | None = None
    """Absolute. Jinja, instead of the model's own template."""
    template: str | None = None
    """The text of ``template_file``."""
    reasoning: Reasoning = "auto"
    """How much the model is asked to think; "auto": the model's own default."""
    template_args: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A preset with everything that it extends applied."""

    name: str
    file: Path
    model: str
    """Model key, or a file's absolute path. Empty: only for other presets to extend."""
    description: str = ""
    aliases: tuple[str, ...] = ()
    ttl: float | None = None
    """Seconds; ``inf``: never; None: ``[models] ttl``."""
    pinned: bool = False
    preload: bool = False
    load: LoadParams = field(default_factory=LoadParams)
    """Only what the preset says: ``[defaults.load]`` goes under it."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    chat: ChatSettings = field(default_factory=ChatSettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Dotted key → "FILE:LINE", for what the files say."""
    digest: str = field(default="", compare=False)
    """Of the contents of all files that it is made of."""
