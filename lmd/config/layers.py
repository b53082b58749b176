"""Where settings come from: flags over environment over ``lmd.toml`` over the defaults of the place.

Each layer is checked by itself, so that a wrong value is told where it stands even when another layer hides it.
pydantic-settings then merges the layers and makes the `Settings`.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_settings import InitSettingsSource

from lmd.config import schema
from lmd.config.document import Document, read_document
from lmd.config.places import Places, default_places
from lmd.config.positions import Loc
from lmd.config.settings import Settings
from lmd.errors import ConfigError, Problem

PREFIX = "LMD_"

_SWITCHES = {"1": True, "yes": True, "on": True, "true": True, "0": False, "no": False, "off": False, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedSettings:
    """``origins``: dotted key → "default", "flag", "env LMD_…" or "FILE:LINE", for every key.

    ``file`` is the lmd.toml that was read, None where there is none. ``notices`` are worth a warning and no more.
    """

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None
    notices: tuple[Problem, ...] = ()


@dataclass(slots=True)
class _Layer:
    """Dotted key → checked value (as TOML has it) and its origin."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notices: list[Problem] = field(default_factory=list)


def load_settings(
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    uid: int | None = None,
) -> LoadedSettings:
    """Read the settings. Blocks on files.

    ``config_file`` is ``--config`` and must exist; without it the default places are tried.
    ``overrides``: flags, dotted key → value; a string is read as that key's type (``"server.port": "0"``).
    Raises ConfigError with every problem of every layer.
    """
    loaded, problems = read_settings(config_file, overrides or {}, environ=environ, uid=uid)
    if problems:
        raise ConfigError(problems, hint="Mend this and try again; `lmd --check` looks without starting.")
    return loaded


def read_settings(
    config_file: Path | None, overrides: Mapping[str, Any], *, environ: Mapping[str, str], uid: int | None = None
) -> tuple[LoadedSettings, tuple[Problem, ...]]:
    """The settings that all right values give, and the problems of the others. Blocks on files."""
    places = default_places(environ, os.geteuid() if uid is None else uid)
    file = config_file.absolute() if config_file else find_file(places)
    layers = [
        _flags(overrides, environ),
        _environment(environ),
        _file(file, environ) if file else _Layer(),
        _Layer(values=_place_values(places)),
    ]
    sources = tuple(InitSettingsSource(Settings, init_kwargs=_nested(layer.values)) for layer in layers)
    settings = Settings(_build_sources=(sources, {}))
    origins = dict.fromkeys(schema.leaves(Settings), "default")
    for layer in reversed(layers):
        origins |= layer.origins
    loaded = LoadedSettings(
        settings=settings,
        origins=origins,
        file=file,
        notices=tuple(notice for layer in layers for notice in layer.notices),
    )
    return loaded, tuple(problem for layer in layers for problem in layer.problems)


def find_file(places: Places) -> Path | None:
    """The lmd.toml that is read without ``--config``."""
    return next((path for path in places.config_files if os.path.lexists(path)), None)


def _place_values(places: Places) -> dict[str, Any]:
    return {
        "paths.models": [str(places.models)],
        "paths.presets": str(places.presets),
        "paths.state": str(places.state),
        "paths.cache": str(places.cache),
        "control.socket": str(places.socket),
    }


# ── the layers ────────────────────────────────────────────────────────────────────────────────


def _file(path: Path, environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    try:
        document = read_document(path)
    except ConfigError as exc:
        layer.problems += exc.problems
        return layer
    sections = schema.members(Settings)
    for name, said in document.table.items():
        if name not in sections:
            layer.problems.append(document.problem((name,), schema.suggest(Settings, (name,))))
            continue
        table = _absolute_paths(name, said, path.parent, environ)
        wrong: set[str] = set()
        try:
            schema.check(sections[name], table, root=Settings, at=(name,))
        except schema.Misfit as exc:
            for fault in exc.faults:
                layer.problems.append(document.problem(fault.loc, fault.message))
                wrong.add(".".join(str(part) for part in fault.loc if isinstance(part, str)))
        _take(layer, document, (name,), table, wrong)
    return layer


def _take(layer: _Layer, document: Document, loc: Loc, value: Any, wrong: set[str]) -> None:
    """Put what is right of ``value`` into the layer."""
    key = ".".join(str(part) for part in loc)
    if key in wrong:
        return
    if key in schema.leaves(Settings):
        layer.values[key] = value
        layer.origins[key] = document.origin(loc)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _take(layer, document, (*loc, name), inner, wrong)


def _environment(environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    known = {PREFIX + key.replace(".", "__").upper(): key for key in schema.leaves(Settings)}
    by_letters = {variable.replace("_", ""): variable for variable in known}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX):
            continue
        if key := known.get(variable):
            try:
                layer.values[key] = read_words(key, text, Path.cwd(), environ)
                layer.origins[key] = f"env {variable}"
            except schema.Misfit as exc:
                layer.problems += [Problem("environment", fault.message, key=variable) for fault in exc.faults]
            continue
        # Only names with our "__" are surely meant for us: Kubernetes sets LMD_PORT for a service named lmd.
        if "__" in variable:
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.75)
            message = "no such setting" + (f"; did you mean {near[0]}?" if near else "")
            layer.problems.append(Problem("environment", message, key=variable))
        elif meant := by_letters.get(variable.replace("_", "")):
            layer.notices.append(Problem("environment", f"has no effect; did you mean {meant}?", key=variable))
    return layer


def _flags(overrides: Mapping[str, Any], environ: Mapping[str, str]) -> _Layer:
    layer = _Layer()
    for key, value in overrides.items():
        kind = schema.leaves(Settings).get(key)
        if kind is None:
            message = schema.suggest(Settings, tuple(key.split(".")))
            layer.problems.append(Problem("flags", message, key=key))
            continue
        try:
            if isinstance(value, str):
                layer.values[key] = read_words(key, value, Path.cwd(), environ)
            else:
                plain = json.loads(json.dumps(value, default=str))
                layer.values[key] = _absolute_paths(key, plain, Path.cwd(), environ)
                schema.check(kind, layer.values[key], root=Settings, at=tuple(key.split(".")))
            layer.origins[key] = "flag"
        except schema.Misfit as exc:
            layer.values.pop(key, None)
            layer.problems += [Problem("flags", fault.message, key=key) for fault in exc.faults]
    return layer


def read_words(key: str, text: str, base: Path, environ: Mapping[str, str]) -> Any:
    """A value that came as a string (environment, flag) as TOML would have it: the first reading that the key takes.

    Lists are JSON (``["a", "b"]``) or separated by commas; booleans are true/false, yes/no, on/off, 1/0. Raises Misfit.
    """
    kind, at = schema.leaves(Settings)[key], tuple(key.split("."))
    misfits = []
    for reading in _readings(text):
        value = _absolute_paths(key, reading, base, environ)
        try:
            schema.check(kind, value, root=Settings, at=at)
        except schema.Misfit as exc:
            misfits.append(exc)
        else:
            return value
    raise misfits[0]


def _readings(text: str) -> Iterator[Any]:
    try:
        number = json.loads(text)
    except (ValueError, RecursionError):
        number = None
    # A number out of bounds is better told as that than as a string where a number was expected.
    if isinstance(number, int | float) and not isinstance(number, bool):
        yield number
    yield text
    if isinstance(number, list):
        yield number
    if (switch := _SWITCHES.get(text.strip().lower())) is not None:
        yield switch
    yield [part.strip() for part in text.split(",") if part.strip()]


def _absolute_paths(key: str, value: Any, base: Path, environ: Mapping[str, str]) -> Any:
    """``value`` of ``key`` (or of a section) with "~" expanded in its paths, and relative ones put below ``base``."""
    if isinstance(value, dict):
        return {name: _absolute_paths(f"{key}.{name}", inner, base, environ) for name, inner in value.items()}
    if isinstance(value, list):
        return [_absolute_paths(key, item, base, environ) for item in value]
    return str(absolute(value, base, environ)) if key in _PATHS and isinstance(value, str) and value else value


def absolute(text: str, base: Path, environ: Mapping[str, str]) -> Path:
    """``text`` as a path, "~" being the home directory; a relative one is meant from ``base``."""
    if text == "~" or text.startswith("~/"):
        return Path(environ.get("HOME") or "/", text[2:])
    return base.absolute() / text


_PATHS = {key for key, kind in schema.leaves(Settings).items() if "Path" in str(kind)} | {"defaults.load.adapters.path"}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *folders, name = key.split(".")
        table = tree
        for folder in folders:
            table = table.setdefault(folder, {})
        table[name] = value
    return tree


def flatten(settings: Settings) -> dict[str, Any]:
    """Dotted key → value as `Settings` holds it, for every key."""

    def value(key: str) -> Any:
        found: Any = settings
        for part in key.split("."):
            found = getattr(found, part)
        return found

    return {key: value(key) for key in schema.leaves(Settings)}
