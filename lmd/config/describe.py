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
            lines.append(f"{name} = {_in_one_line(value)}  # {origin}")
    return "\n".join(lines) + "\n"


def _in_one_line(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_in_one_line, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {_in_one_line(inner)}' for name, inner in value.items())} }}"
    return str(tomlkit.item(value).as_string())
