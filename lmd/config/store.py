"""What the operator wrote, as it is now: one immutable `Snapshot`, swapped whole."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmd.config.preset import Preset
from lmd.config.settings import Settings
from lmd.errors import Problem


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
    """Worth telling, but nothing is wrong: unknown variables, changes that wait for a restart."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Of the settings, as in `LoadedSettings`."""
    file: Path | None = None
    """The lmd.toml that was read."""
    aliases: Mapping[str, str] = field(init=False)
    """Alias → name of the preset that has it."""

    def __post_init__(self) -> None:
        aliases = {alias: preset.name for preset in self.presets.values() for alias in preset.aliases}
        object.__setattr__(self, "aliases", aliases)

    def preset(self, name: str) -> Preset | None:
        """The served preset of that name or alias."""
        return self.presets.get(name) or self.presets.get(self.aliases.get(name, ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """What a reload did. ``changed`` names presets added, edited or removed; ``settings`` are dotted keys."""

    changed: tuple[str, ...]
    settings: tuple[str, ...]
    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]


class ConfigStore:
    """Owner of the snapshot. One thread (the event loop's) calls it."""

    def __init__(
        self,
        config_file: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Read everything. Blocks on files. Raises ConfigError when the settings are wrong;
        wrong presets are left out and told in ``snapshot.problems``."""
        raise NotImplementedError

    @property
    def snapshot(self) -> Snapshot:
        raise NotImplementedError

    def reload(self) -> Reloaded:
        """Read the files again and swap the snapshot. Blocks on files (milliseconds); wrong ones do not raise."""
        raise NotImplementedError

    def check(self) -> tuple[Problem, ...]:
        """What a reload would find wrong. Changes nothing."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[Reloaded], None]) -> Callable[[], None]:
        """Call ``callback`` after each reload that changed anything, problems included. Returns the way to stop it."""
        raise NotImplementedError

    async def watch(self) -> None:
        """Reload whenever the files change, until cancelled."""
        raise NotImplementedError

    def effective(self, name: str) -> tuple[dict[str, object], dict[str, str]]:
        """Every setting of a preset (or alias) with ``extends`` and defaults applied, as JSON values, and where each
        came from by dotted key. Raises ModelNotFound."""
        raise NotImplementedError


def check(
    config_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> tuple[Problem, ...]:
    """All that is wrong with the settings and presets on disk, for ``lmd --check``. Blocks on files; never raises."""
    raise NotImplementedError


def alias_clashes(snapshot: Snapshot, model_keys: Iterable[str]) -> tuple[Problem, ...]:
    """Aliases and names of presets that are also model keys (case ignored). The preset wins a request for the name."""
    raise NotImplementedError
