"""What the operator wrote, as it is now: one owner, one immutable `Snapshot`, swapped whole."""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmd.config.layers import LoadedSettings, flatten, load_settings, read_settings
from lmd.config.places import default_places
from lmd.config.preset import Preset
from lmd.config.snapshot import (
    Presets,
    Snapshot,
    alias_clashes,
    changed_presets,
    keep_until_restart,
    read_presets,
)
from lmd.config.units import format_duration
from lmd.config.watch import Watched, watch_files
from lmd.errors import ConfigError, ModelNotFound, Problem

__all__ = ["ConfigStore", "Reloaded", "Snapshot", "alias_clashes", "check"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What a reload did. ``changed`` names presets added, edited or removed; ``settings`` are dotted keys."""

    changed: tuple[str, ...]
    settings: tuple[str, ...]
    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]


class ConfigStore:
    """Owner of the snapshot, which changes on the event loop only; files are read beside it."""

    def __init__(
        self,
        config_file: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Read everything. Blocks on files. Raises ConfigError when the settings are wrong;
        wrong presets are left out and told in ``snapshot.problems``."""
        self._config_file = config_file.absolute() if config_file else None
        self._overrides = dict(overrides or {})
        self._environ = dict(environ)
        self._subscribers: list[Callable[[Reloaded], None]] = []
        self._loaded = load_settings(self._config_file, self._overrides, environ=self._environ)
        self._presets = _read_presets(self._loaded, None, self._environ)
        self._snapshot = _snapshot(self._loaded, self._presets, ())
        self._reading = asyncio.Lock()

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    async def reload(self) -> Reloaded:
        """Read the files again, in a thread, and swap the snapshot; wrong files do not raise. Several at once take
        turns, so that what was read last is what counts."""
        async with self._reading:
            return self._swap(*await asyncio.to_thread(self._read))

    def _swap(self, loaded: LoadedSettings, presets: Presets, problems: tuple[Problem, ...]) -> Reloaded:
        before, after = self._snapshot, _snapshot(loaded, presets, problems)
        old, new = flatten(before.settings), flatten(after.settings)
        reloaded = Reloaded(
            changed=changed_presets(self._presets, presets),
            settings=tuple(key for key in new if old[key] != new[key]),
            problems=after.problems,
            notices=after.notices,
        )
        self._loaded, self._presets, self._snapshot = loaded, presets, after
        if (
            reloaded.changed
            or reloaded.settings
            or (before.problems, before.notices) != (after.problems, after.notices)
        ):
            self._tell(reloaded)
        return reloaded

    def check(self, models: Mapping[str, Path] | None = None) -> tuple[Problem, ...]:
        """What a reload would find wrong, and aliases that are keys of ``models``. Changes nothing. Blocks on files."""
        loaded, presets, problems = self._read()
        read = _snapshot(loaded, presets, problems)
        return (*read.problems, *alias_clashes(read, models or {}))

    def subscribe(self, callback: Callable[[Reloaded], None]) -> Callable[[], None]:
        """Call ``callback`` after each reload that changed anything, problems included. Returns the way to stop it."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    async def watch(self) -> None:
        """Reload whenever the files change, until cancelled. A change is seen within a second of its last write."""
        await watch_files(self._watched, self.reload)

    def effective(self, name: str) -> tuple[dict[str, object], dict[str, str]]:
        """Every setting of a preset (or alias) with ``extends`` and defaults applied, as JSON values, and where each
        came from by dotted key. Raises ModelNotFound."""
        preset = self._snapshot.preset(name) or self._snapshot.bases.get(name)
        if preset is None:
            raise ModelNotFound(f"There is no preset '{name}'.", hint="`lmctl preset ls` lists them.", param="preset")
        return effective(preset, self._snapshot)

    def _read(self) -> tuple[LoadedSettings, Presets, tuple[Problem, ...]]:
        """Settings and presets as they are to be now, and the problems of the settings."""
        problems: tuple[Problem, ...] = ()
        try:
            read = load_settings(self._config_file, self._overrides, environ=self._environ)
            loaded = keep_until_restart(self._loaded, read)
        except ConfigError as exc:
            loaded, problems = self._loaded, exc.problems
        return loaded, _read_presets(loaded, self._presets, self._environ), problems

    def _tell(self, reloaded: Reloaded) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(reloaded)
            except Exception:
                # The snapshot is swapped already: the other subscribers must hear of it.
                log.exception("A subscriber to configuration changes failed.")

    def _watched(self) -> Watched:
        places = default_places(self._environ, os.geteuid())
        templates = {file.template_file for file in self._presets.files.values() if file.template_file}
        candidates = (self._config_file,) if self._config_file else places.config_files
        return Watched(folder=self._loaded.settings.paths.presets, files=frozenset({*candidates, *templates}))


def check(
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Problem, ...]:
    """All that is wrong with the settings and presets on disk, for ``lmd --check``. Blocks on files; never raises."""
    loaded, problems = read_settings(config_file, overrides or {}, environ=environ, uid=None)
    return (*problems, *_read_presets(loaded, None, environ).problems)


def _read_presets(loaded: LoadedSettings, known: Presets | None, environ: Mapping[str, str]) -> Presets:
    return read_presets(
        loaded.settings.paths.presets,
        is_required=loaded.origins["paths.presets"] != "default",
        known=known,
        environ=environ,
    )


def _snapshot(loaded: LoadedSettings, presets: Presets, problems: tuple[Problem, ...]) -> Snapshot:
    return Snapshot(
        settings=loaded.settings,
        presets=presets.served,
        bases=presets.bases,
        problems=(*problems, *presets.problems),
        notices=loaded.notices,
        origins=loaded.origins,
        file=loaded.file,
    )


def effective(preset: Preset, snapshot: Snapshot) -> tuple[dict[str, object], dict[str, str]]:
    """`ConfigStore.effective` over values. What nobody says is None, with the origin "default"."""
    settings = snapshot.settings
    load = asdict(preset.load.over(settings.defaults.load))
    sampling = asdict(preset.sampling.over(settings.defaults.sampling))
    chat = asdict(preset.chat)
    del chat["template"]
    ttl = settings.models.ttl if preset.ttl is None else preset.ttl
    values: dict[str, Any] = {
        "model": preset.model,
        "description": preset.description,
        "aliases": list(preset.aliases),
        "ttl": format_duration(ttl),
        "pinned": preset.pinned,
        "preload": preset.preload,
        "load": load,
        "sampling": {key: list(value) if isinstance(value, tuple) else value for key, value in sampling.items()},
        "chat": chat | {"template_file": str(chat["template_file"]) if chat["template_file"] else None},
    }
    inherited = {f"{part}.{key}": f"defaults.{part}.{key}" for part in ("load", "sampling") for key in values[part]}
    inherited["ttl"] = "models.ttl"
    origins: dict[str, str] = {}
    for key, value in values.items():
        inner = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
        for place in inner:
            origins[place] = preset.origins.get(place) or snapshot.origins.get(inherited.get(place, ""), "default")
    arguments = {place: origin for place, origin in preset.origins.items() if place.startswith("chat.template_args.")}
    return values, origins | arguments
