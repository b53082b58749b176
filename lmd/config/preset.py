"""One preset: the schema of its file, and how files become presets (``extends`` applied)."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict

from lmd.config import schema
from lmd.config.document import Document, digest_of, parse_document, printable, read_text
from lmd.config.layers import absolute
from lmd.config.positions import Loc
from lmd.config.units import Duration
from lmd.errors import ConfigError, Problem
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
    inline_reasoning: bool = False
    """Leave reasoning in the answer's text, between the model's own markers."""
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


# ── the schema of a file ──────────────────────────────────────────────────────────────────────

_NAME = re.compile(r"[^\W_][\w.+:@-]{0,127}")
_ALIAS = re.compile(r"[^\W_][\w.+:@/-]{0,255}")


def _check_alias(alias: str) -> str:
    if not _ALIAS.fullmatch(alias):
        raise ValueError("expected a name of letters, digits and . _ - + : @ / that starts with a letter or digit")
    return alias


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Chat(_Table):
    system_prompt: str | None = None
    template_file: Annotated[str, MinLen(1)] | None = None
    reasoning: Reasoning | None = None
    inline_reasoning: bool | None = None
    template_args: dict[str, Any] = {}


class _File(_Table):
    model: Annotated[str, MinLen(1)] | None = None
    """Model key, or a file's path. A preset without one is there for others to extend."""
    description: str = ""
    """For people: lists of models show it."""
    aliases: Annotated[tuple[Annotated[str, AfterValidator(_check_alias)], ...], MaxLen(256)] = ()
    """Further names that requests may use for it."""
    extends: Annotated[str, MinLen(1)] | None = None
    """Name of another preset, whose keys hold where this one says nothing."""
    ttl: Duration | None = None
    """Idle time after which the model leaves. Unset: that of ``[models]`` in lmd.toml."""
    pinned: bool | None = None
    """Never leaves by itself, neither by its TTL nor for another model."""
    preload: bool | None = None
    """Load it when lmd starts."""
    load: LoadParams = LoadParams()
    sampling: SamplingParams = SamplingParams()
    chat: _Chat = _Chat()


SCHEMA: type[BaseModel] = _File
"""Of one file, for those who describe it."""

_OWN = ("extends", "aliases", "description")
"""Keys that one who extends the preset does not take over."""


# ── reading a file ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, eq=False)
class PresetFile:
    """A preset file that is right by itself. What it extends has not been looked at."""

    name: str
    document: Document
    said: _File
    template_file: Path | None
    template: str | None

    @property
    def path(self) -> Path:
        return self.document.path

    @property
    def digest(self) -> str:
        return digest_of(self.name, self.document.digest, str(self.template_file or ""), self.template or "")


def read_preset_file(
    path: Path, *, environ: Mapping[str, str] = os.environ, known: PresetFile | None = None
) -> PresetFile:
    """Blocks on the file (and on its template). Raises ConfigError with everything that is wrong in it.

    ``known``: an earlier reading of the file, taken instead of parsing again where the text is the same.
    """
    name = path.stem
    if not _NAME.fullmatch(name):
        wanted = "letters, digits and . _ - + : @, at most 128, the first a letter or digit"
        raise ConfigError([Problem(printable(path), f"a preset's file name before .toml is {wanted}")])
    text = read_text(path)
    if known is not None and known.path == path and known.document.digest == digest_of(text):
        document, said = known.document, known.said
    else:
        document = parse_document(path, text)
        said = _check(document)
    template_file, template = None, None
    if said.chat.template_file:
        template_file = absolute(said.chat.template_file, path.parent, environ)
        try:
            template = read_text(template_file)
        except ConfigError as exc:
            message = f"{printable(template_file)} {exc.problems[0].message}"
            raise ConfigError([document.problem(("chat", "template_file"), message)]) from exc
    return PresetFile(name, document, said, template_file, template)


def _check(document: Document) -> _File:
    try:
        said: _File = schema.check(_File, document.table)
    except schema.Misfit as exc:
        raise ConfigError([document.problem(fault.loc, fault.message) for fault in exc.faults]) from exc
    seen: set[str] = set()
    for index, alias in enumerate(said.aliases):
        if alias in seen:
            raise ConfigError([document.problem(("aliases", index), f"'{alias}' is listed twice")])
        seen.add(alias)
    return said


# ── applying extends ──────────────────────────────────────────────────────────────────────────


def resolve_preset(name: str, files: Mapping[str, PresetFile], *, environ: Mapping[str, str] = os.environ) -> Preset:
    """The preset ``name`` with what it extends, all found in ``files``. Raises ConfigError (missing base, cycle)."""
    chain = _chain(name, files)
    own = chain[0]
    load, sampling, chat = LoadParams(), SamplingParams(), ChatSettings()
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file in reversed(chain):
        said = file.said
        load, sampling, chat = _load(file, environ).over(load), said.sampling.over(sampling), _chat_over(file, chat)
        for key in ("ttl", "pinned", "preload"):
            if (value := getattr(said, key)) is not None:
                merged[key] = value
        if said.model is not None:
            merged["model"] = _model(said.model, file.path.parent, environ)
        origins |= _origins(file.document, (), own=file is own)
    return Preset(
        name=name,
        file=own.path,
        model=merged.get("model", ""),
        description=own.said.description,
        aliases=own.said.aliases,
        ttl=merged.get("ttl"),
        pinned=merged.get("pinned", False),
        preload=merged.get("preload", False),
        load=load,
        sampling=sampling,
        chat=chat,
        origins=origins,
        digest=digest_of(*(file.digest for file in chain)),
    )


def _chain(name: str, files: Mapping[str, PresetFile]) -> list[PresetFile]:
    """The file of ``name``, the one that it extends, and so on."""
    chain = [files[name]]
    while (base := chain[-1].said.extends) is not None:
        document = chain[-1].document
        names = [file.name for file in chain]
        if base in names:
            circle = " → ".join([*names[names.index(base) :], base])
            raise ConfigError([files[name].document.problem(("extends",), f"presets extend each other: {circle}")])
        if base not in files:
            what = f"no preset file '{base}.toml' that can be used stands beside it"
            if chain[1:]:
                what = f"extends '{names[1]}', which comes to '{base}' ({document.path.name}): {what}"
            raise ConfigError([files[name].document.problem(("extends",), what)])
        chain.append(files[base])
    return chain


def _chat_over(file: PresetFile, base: ChatSettings) -> ChatSettings:
    said = file.said.chat
    has_template = file.template_file is not None
    return ChatSettings(
        system_prompt=base.system_prompt if said.system_prompt is None else said.system_prompt,
        template_file=file.template_file if has_template else base.template_file,
        template=file.template if has_template else base.template,
        reasoning=said.reasoning or base.reasoning,
        inline_reasoning=base.inline_reasoning if said.inline_reasoning is None else said.inline_reasoning,
        template_args={**base.template_args, **said.template_args},
    )


def _load(file: PresetFile, environ: Mapping[str, str]) -> LoadParams:
    load = file.said.load
    if load.adapters is None:
        return load
    folder = file.path.parent
    return replace(
        load,
        adapters=tuple(
            replace(one, path=os.path.normpath(absolute(one.path, folder, environ))) for one in load.adapters
        ),
    )


def _model(text: str, folder: Path, environ: Mapping[str, str]) -> str:
    """A path is what starts like one; everything else is a model key, slashes and all."""
    is_path = text.startswith(("/", "~/", "./", "../"))
    return os.path.normpath(absolute(text, folder, environ)) if is_path else text


def _origins(document: Document, loc: Loc, *, own: bool) -> dict[str, str]:
    """Where each key of a preset stands; ``chat.template_args`` argument by argument."""
    table: Any = document.table
    for part in loc:
        table = table[part]
    found: dict[str, str] = {}
    for key, value in table.items():
        if not own and not loc and key in _OWN:
            continue
        here = (*loc, key)
        if isinstance(value, dict) and (not loc or here == ("chat", "template_args")):
            found |= _origins(document, here, own=own)
        else:
            found[".".join(str(part) for part in here)] = document.origin(here)
    return found
