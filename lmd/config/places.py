"""Where lmd's files are when nobody says: systemd's directories, else the system's for root, else XDG's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmd.protocol import default_sockets


@dataclass(frozen=True, slots=True)
class Places:
    """Default paths. ``config_files`` are tried in turn; the first that exists is read."""

    config_files: tuple[Path, ...]
    models: Path
    presets: Path
    state: Path
    cache: Path
    socket: Path


def default_places(environ: Mapping[str, str], uid: int) -> Places:
    """The places for a daemon of user ``uid``. Relative XDG variables are passed by, as their specification wants."""
    home = Path(environ.get("HOME") or "/")

    def xdg(name: str, default: str) -> Path:
        path = environ.get(name, "")
        return (Path(path) if path.startswith("/") else home / default) / "lmd"

    def service(name: str) -> Path | None:
        # systemd lists several directories separated by colons; lmd's units ask for one.
        first = environ.get(name, "").split(":")[0]
        return Path(first) if first else None

    root = uid == 0
    user_config = xdg("XDG_CONFIG_HOME", ".config")
    given_config = service("CONFIGURATION_DIRECTORY")
    given_state = service("STATE_DIRECTORY")
    config = given_config or (Path("/etc/lmd") if root else user_config)
    state = given_state or (Path("/var/lib/lmd") if root else xdg("XDG_STATE_HOME", ".local/state"))
    cache = service("CACHE_DIRECTORY") or (Path("/var/cache/lmd") if root else xdg("XDG_CACHE_HOME", ".cache"))
    models = state / "models" if given_state or root else xdg("XDG_DATA_HOME", ".local/share") / "models"
    folders = dict.fromkeys((*([given_config] if given_config else []), Path("/etc/lmd"), user_config))
    return Places(
        config_files=tuple(folder / "lmd.toml" for folder in folders),
        models=models,
        presets=config / "presets.d",
        state=state,
        cache=cache,
        socket=Path(default_sockets(environ, uid)[0]),
    )
