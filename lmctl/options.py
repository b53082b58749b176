"""The options that every command takes, before or after its name, and what a command gets made of them."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lmctl.client import Client

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
SocketPath = Annotated[
    str | None,
    typer.Option(
        "--socket", metavar="PATH", help="lmd's control socket.  [default: $LMD_SOCKET, else the usual places]"
    ),
]


@dataclass(frozen=True, slots=True)
class Common:
    json: bool = False
    socket: str | None = None

    def client(self) -> "Client":
        from lmctl.client import Client, socket_path

        return Client(socket_path(self.socket, os.environ))


def common(ctx: typer.Context, as_json: bool, socket: str | None) -> Common:
    """What was said here, over what was said before the command's name. Kept in the context for groups below."""
    outer = ctx.obj if isinstance(ctx.obj, Common) else Common()
    said = replace(outer, json=outer.json or as_json, socket=socket or outer.socket)
    ctx.obj = said
    return said
