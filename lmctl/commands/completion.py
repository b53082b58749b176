"""``lmctl completion SHELL`` and the hidden ``lmctl complete KIND``, which its scripts call."""

import sys
from collections.abc import Callable, Iterable

from lmctl.client import Client
from lmctl.errors import CommandError
from lmctl.options import Common
from lmctl.text import printable
from lmd.protocol import ChatRow, DownloadRow, InstanceRow, ModelRow, PresetRow, TokenRow


def print_script(shell: str) -> None:
    from lmctl.shells import script
    from lmctl.tree import commands

    sys.stdout.write(script(shell, commands()))


def _models(client: Client) -> list[str]:
    return [row.key for row in client.get("/models", list[ModelRow])]


def _presets(client: Client) -> list[str]:
    rows = client.get("/presets", list[PresetRow])
    return [name for row in rows for name in (row.name, *row.aliases)]


def _instances(client: Client) -> list[str]:
    return [row.id for row in client.get("/instances", list[InstanceRow])]


KINDS: dict[str, Callable[[Client], Iterable[str]]] = {
    "models": _models,
    "presets": _presets,
    "instances": _instances,
    "targets": lambda client: [*_models(client), *_presets(client), *_instances(client)],
    "tokens": lambda client: [row.name for row in client.get("/tokens", list[TokenRow])],
    "downloads": lambda client: [row.id for row in client.get("/downloads", list[DownloadRow])],
    "chats": lambda client: [row.id for row in client.get("/chats", list[ChatRow])],
}


def print_names(common: Common, kind: str) -> None:
    """The names of that kind, one a line; nothing where the daemon does not answer, for a shell is listening."""
    try:
        names = KINDS[kind](common.client()) if kind in KINDS else ()
    except CommandError:
        return
    for name in dict.fromkeys(names):
        # A shell would take such a name apart.
        if name and name == printable(name) and not any(char.isspace() for char in name):
            print(name)
