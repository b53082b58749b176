"""How the files on disk become the next snapshot: pure but for the reading, which is named so."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from lmd.config.document import printable
from lmd.config.layers import LoadedSettings, flatten
from lmd.config.preset import Preset, PresetFile, read_preset_file, resolve_preset
from lmd.config.settings import Settings
from lmd.errors import ConfigError, Problem

RESTART = frozenset(
    {
        "server.host",
        "server.port",
        "server.max_body",
        "server.allow_insecure",
        "limits.header_size",
        "limits.receive_timeout",
        "control.socket",
        "control.mode",
        "control.group",
        "paths.models",
        "paths.state",
        "paths.cache",
    }
)
"""Settings that are read once, when the daemon starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Settings and presets that belong together. What one request needs it takes from one snapshot."""

    settings: Settings
    presets: Mapping[str, Preset]
    """By name, in the order of names; only those that are served."""
    bases: Mapping[str, Preset] = field(default_factory=dict)
    """Presets without a model: not served, but others extend them."""
    problems: tuple[Problem, ...] = ()
    """What is wrong on disk now. The last good version (if any) of each such file is what the rest of this holds."""
    notices: tuple[Problem, ...] = ()
    """Worth telling, but nothing is wrong: variables without effect, changes that wait for a restart."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Of the settings, as in `LoadedSettings`."""
    file: Path | None = None
    """The lmd.toml that was read."""
    aliases: Mapping[str, str] = field(init=False)
    """Alias → name of the preset that has it."""

    def __post_init__(self) -> None:
        aliases = {alias: preset.name for preset in self.presets.values() for alias in preset.aliases}
        object.__setattr__(self, "aliases", MappingProxyType(aliases))

    def preset(self, name: str) -> Preset | None:
        """The served preset of that name or alias."""
        return self.presets.get(name) or self.presets.get(self.aliases.get(name, ""))


@dataclass(frozen=True, slots=True)
class Presets:
    """What became of the preset files: each is served, a base, or neither with a problem telling why."""

    served: Mapping[str, Preset]
    bases: Mapping[str, Preset]
    files: Mapping[str, PresetFile]
    """The last good reading of each file that still exists."""
    problems: tuple[Problem, ...]


def read_presets(
    folder: Path, *, is_required: bool, known: Presets | None = None, environ: Mapping[str, str] = os.environ
) -> Presets:
    """Read the presets of ``folder``. Blocks on files. ``known`` is what serves now: nothing wrong replaces it.

    ``is_required``: somebody named the folder, so that its absence is a mistake.
    """
    problems: list[Problem] = []
    try:
        paths = preset_paths(folder)
    except OSError as exc:
        is_missing = isinstance(exc, FileNotFoundError)
        if is_required or not is_missing:
            reason = (exc.strerror or str(exc)).lower()
            problems.append(Problem(printable(folder), f"the preset directory cannot be read: {reason}"))
        if known is not None and not is_missing:
            return replace(known, problems=tuple(problems))
        paths = []
    files: dict[str, PresetFile] = {}
    for path in paths:
        before = known.files.get(path.stem) if known else None
        try:
            files[path.stem] = read_preset_file(path, environ=environ, known=before)
        except ConfigError as exc:
            problems += exc.problems
            if before is not None and before.path == path:
                files[path.stem] = before
    return _settle(files, problems, known, environ)


def preset_paths(folder: Path) -> list[Path]:
    """The preset files in ``folder``, by name. Names that begin with a dot are editors' and ConfigMaps' own."""
    return sorted(path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))


def _settle(
    files: Mapping[str, PresetFile], problems: list[Problem], known: Presets | None, environ: Mapping[str, str]
) -> Presets:
    """Apply ``extends`` and give out names and aliases; what fails keeps the version that serves now."""
    serving = {**known.served, **known.bases} if known else {}
    extended = {file.said.extends for file in files.values()}
    versions: dict[str, Preset] = {}
    for name, file in files.items():
        try:
            preset = resolve_preset(name, files, environ=environ)
            if not preset.model and name not in extended:
                message = 'names no model, and no preset extends it; write model = "…" (`lmctl ls` lists keys)'
                raise ConfigError([Problem(printable(file.path), message, key="model")])
            versions[name] = preset
        except ConfigError as exc:
            problems += exc.problems
            if name in serving:
                versions[name] = serving[name]
    while clashes := _clashes(versions, serving, files):
        problems += clashes.values()
        for name in clashes:
            if name in serving:
                versions[name] = serving[name]
            else:
                del versions[name]
    served = {name: preset for name, preset in sorted(versions.items()) if preset.model}
    bases = {name: preset for name, preset in sorted(versions.items()) if not preset.model}
    return Presets(MappingProxyType(served), MappingProxyType(bases), files, tuple(problems))


def _clashes(
    versions: Mapping[str, Preset], serving: Mapping[str, Preset], files: Mapping[str, PresetFile]
) -> dict[str, Problem]:
    """Presets that want a name that another one has, with the problem of each.

    Who has a name already keeps it; then names go before aliases, and earlier names before later ones.
    """
    owners: dict[str, str] = {}
    claims = [(preset.name, claim) for preset in versions.values() for claim in (preset.name, *preset.aliases)]

    def rank(claim: tuple[str, str]) -> tuple[bool, bool, str]:
        name, wanted = claim
        has_it = name in serving and wanted in (name, *serving[name].aliases)
        return (not has_it, wanted != name, name)

    clashes: dict[str, Problem] = {}
    for name, wanted in sorted(claims, key=rank):
        owner = owners.setdefault(wanted, name)
        if owner != name and name not in clashes:
            what = "is the name of" if wanted == owner else "is an alias of"
            message = (
                f"'{wanted}' {what} the preset in {printable(versions[owner].file)}; one name can mean one preset only"
            )
            document = files[name].document
            aliases = versions[name].aliases
            loc = ("aliases", aliases.index(wanted)) if wanted in aliases else ()
            clashes[name] = document.problem(loc, message)
    return clashes


# ── settings ──────────────────────────────────────────────────────────────────────────────────


def keep_until_restart(running: LoadedSettings, read: LoadedSettings) -> LoadedSettings:
    """What was read, but with the running values of what takes effect at a start only; a notice tells of each."""
    now, then = flatten(running.settings), flatten(read.settings)
    waiting = sorted(key for key in RESTART if now[key] != then[key])
    if not waiting:
        return read
    settings = read.settings
    notices = []
    origins = dict(read.origins)
    for key in waiting:
        section, _, name = key.partition(".")
        part = getattr(settings, section).model_copy(update={name: now[key]})
        settings = settings.model_copy(update={section: part})
        number = _line(origins[key])
        where = printable(read.file) if number else "settings"
        notices.append(Problem(where, "takes effect when lmd is started again", key=key, line=number))
        origins[key] = running.origins[key]
    return LoadedSettings(settings=settings, origins=origins, file=read.file, notices=(*read.notices, *notices))


def alias_clashes(snapshot: Snapshot, models: Mapping[str, Path]) -> tuple[Problem, ...]:
    """Aliases of presets that are also keys of ``models`` (case ignored), which only the caller's catalog can tell.

    Such an alias serves on: the model may have come after it.
    """
    files = {key.casefold(): path for key, path in models.items()}
    return tuple(
        Problem(
            printable(preset.file),
            f"the alias '{alias}' is also the key of the model {printable(files[alias.casefold()])}, which it hides; "
            "one name can mean one thing only",
            key="aliases",
            line=_line(preset.origins.get("aliases", "")),
        )
        for preset in snapshot.presets.values()
        for alias in preset.aliases
        if alias.casefold() in files
    )


def _line(origin: str) -> int:
    """Of "FILE:LINE"; 0 where there is none."""
    line = origin.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def changed_presets(before: Presets | None, after: Presets) -> tuple[str, ...]:
    """Names of presets that were added, removed or made anew from other text."""
    old = {**before.served, **before.bases} if before else {}
    new = {**after.served, **after.bases}
    both: Sequence[str] = sorted(old.keys() | new.keys())
    return tuple(name for name in both if name not in old or name not in new or old[name].digest != new[name].digest)
