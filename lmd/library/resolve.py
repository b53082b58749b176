"""What a requested name means now: a preset, its alias, or a model."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lmd.config.preset import ChatSettings, Preset
from lmd.config.snapshot import Snapshot
from lmd.errors import LmdError, ModelNotFound, UnusableModel
from lmd.generation import SamplingParams
from lmd.library.catalog import Catalog, Model
from lmd.loading import PROMPT_LOOKUP, LoadParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model and how to load, sample and prompt it, with the defaults applied."""

    name: str
    """As `listing` has it: the preset's name, or the model's key."""
    model: Model
    preset: str | None
    """The preset whose sampling and chat settings these are."""
    load: LoadParams
    draft: Model | None
    """The model of ``load.draft_model``."""
    sampling: SamplingParams
    """What the request leaves unsaid is taken from here."""
    chat: ChatSettings
    ttl: float
    """Seconds of idleness that an instance loaded for this survives; ``inf``: it stays."""
    pinned: bool


@dataclass(frozen=True, slots=True)
class Listed:
    """A name that clients may use."""

    name: str
    model: Model
    preset: Preset | None = None


def resolve(name: str, snapshot: Snapshot, catalog: Catalog, preset: str | None = None) -> Target:
    """What ``name`` means: a preset's name, an alias, a model key or a short form of one, in this order.

    ``preset``, the request's own field, names the preset (or alias) whose sampling and chat settings apply instead; how
    the model is loaded stays as ``name`` has it. Raises ModelNotFound (with ``param`` "preset" for that one),
    AmbiguousModel, and ModelFileError for a preset's file. Blocks as `Catalog.at` does, for presets that name files.
    """
    named = snapshot.preset(name)
    applied = named if preset is None else _preset(preset, snapshot)
    model = model_of(named, catalog) if named else _model(name, snapshot, catalog)
    defaults = snapshot.settings.defaults
    load = named.load.over(defaults.load) if named else defaults.load
    ttl = named.ttl if named else None
    return Target(
        name=named.name if named else model.key,
        model=model,
        preset=applied.name if applied else None,
        load=load,
        draft=_draft(load.draft_model, named, catalog) if load.draft_model not in {None, PROMPT_LOOKUP} else None,
        sampling=applied.sampling.over(defaults.sampling) if applied else defaults.sampling,
        chat=applied.chat if applied else ChatSettings(),
        ttl=snapshot.settings.models.ttl if ttl is None else ttl,
        pinned=named.pinned if named else False,
    )


def listing(snapshot: Snapshot, catalog: Catalog) -> tuple[Listed, ...]:
    """All names to show: presets whose model is there, then every model under its key.

    Models that presets name are listed under their key as well: it stays valid, and clients that choose a model by its
    file would miss it. Where a preset has a model's key for a name, the name means the preset.
    """
    listed: dict[str, Listed] = {}
    for preset in snapshot.presets.values():
        try:
            listed[preset.name] = Listed(preset.name, model_of(preset, catalog), preset)
        except LmdError:
            continue  # asking for it tells why
    for key, model in catalog.models.items():
        listed.setdefault(key, Listed(key, model))
    return tuple(listed.values())


def model_of(preset: Preset, catalog: Catalog) -> Model:
    """The model that ``preset`` names, by key, short form or absolute path. Raises and blocks as `resolve` does."""
    try:
        return _named(preset.model, catalog)
    except UnusableModel:
        raise
    except ModelNotFound as exc:
        raise ModelNotFound(
            f"The model '{preset.model}' of preset '{preset.name}' is not there ({preset.file}).",
            hint=exc.hint or f"Put the file there, or change 'model' in {preset.file}.",
            param="model",
        ) from exc


def _draft(name: str, preset: Preset | None, catalog: Catalog) -> Model:
    is_own = preset is not None and preset.load.draft_model is not None
    try:
        if preset and is_own and name.startswith(("./", "../", "~/")):
            return catalog.at(Path(os.path.normpath(preset.file.parent / Path(name).expanduser())))
        return _named(name, catalog)
    except ModelNotFound as exc:
        where = f"preset '{preset.name}' ({preset.file})" if preset and is_own else "[defaults.load]"
        raise ModelNotFound(f"The draft_model '{name}' of {where} is not there.", hint=exc.hint, param="model") from exc


def _named(name: str, catalog: Catalog) -> Model:
    """A model as operators name it: what starts with a slash is a file, everything else a key or short form."""
    return catalog.at(Path(name)) if name.startswith("/") else catalog.find(name)


def _preset(name: str, snapshot: Snapshot) -> Preset:
    # A base serves nothing by itself, but has sampling and chat settings like any other.
    if found := snapshot.preset(name) or snapshot.bases.get(name):
        return found
    near = get_close_matches(name[:200], [*snapshot.presets, *snapshot.aliases, *snapshot.bases], n=3)
    raise ModelNotFound(
        f"There is no preset named '{name[:200]}'.",
        hint=f"Did you mean {' or '.join(near)}?" if near else "'lmctl preset ls' lists the presets.",
        param="preset",
    )


def _model(name: str, snapshot: Snapshot, catalog: Catalog) -> Model:
    try:
        return catalog.find(name)
    except ModelNotFound as exc:
        near = get_close_matches(name[:200], [*snapshot.presets, *snapshot.aliases], n=3)
        if not near:
            raise
        message = f"There is no model, preset or alias named '{name[:200]}'."
        raise ModelNotFound(message, hint=f"Did you mean {' or '.join(near)}?", param="model") from exc
