"""The names and options of ``lmctl chats``. What it does is in lmctl.commands.chats."""

from typing import Annotated

import typer

from lmctl.errors import UsageError
from lmctl.options import JsonFlag, SocketPath, common

chats_app = typer.Typer(
    rich_markup_mode=None, help="List and remove the conversations that lmd keeps for /api/v1/chat."
)

ChatIds = Annotated[
    list[str] | None, typer.Argument(metavar="ID...", help="A conversation's id, or any response's in it.")
]


@chats_app.callback(invoke_without_command=True)
def chats_root(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """Without a command: ls."""
    said = common(ctx, as_json, socket)
    if ctx.invoked_subcommand is None:
        from lmctl.commands.chats import list_chats

        list_chats(said)


@chats_app.command("ls")
def chats_ls(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """List the conversations, the last used first."""
    from lmctl.commands.chats import list_chats

    list_chats(common(ctx, as_json, socket))


@chats_app.command("rm")
def chats_rm(
    ctx: typer.Context,
    ids: ChatIds = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Every conversation.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Remove conversations with all their branches."""
    from lmctl.commands.chats import remove_chats

    if all_ == bool(ids):
        raise UsageError("Say which conversations, or --all.", hint="'lmctl chats' lists them.")
    remove_chats(common(ctx, as_json, socket), ids or [], all_=all_)
