"""The effective settings as ``lmd --print-config`` shows them."""

from typing import Any

import tomlkit

from lmd.config.document import printable
from lmd.config.layers import LoadedSettings
from lmd.config.schema import leaves
from lmd.config.settings import Settings


def describe(loaded: LoadedSettings) -> str:
    """TOML with the origin of every key as a comment. Reads back to equal settings."""
    dumped = loaded.settings.model_dump(mode="json")
    lines = [f"# Settings file: {printable(loaded.file or 'none')}"]
    section = ""
    for key in leaves(Settings):
        folder, _, name = key.rpartition(".")
        if folder != section:
            section = folder
            lines += ["", f"[{section}]"]
        value: Any = dumped
        for part in key.split("."):
            value = value[part]
        origin = printable(loaded.origins[key])
        if value is None:
            lines.append(f"# {name} is not set  ({origin})")
        else:
            lines.append(f"{name} = {tomlkit.item(value).as_string()}  # {origin}")
    return "\n".join(lines) + "\n"
