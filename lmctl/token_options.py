"""The names and options of ``lmctl token``. What it does is in lmctl.commands.tokens."""

from typing import Annotated

import typer

from lmctl.options import JsonFlag, SocketPath, common

token_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make and revoke tokens for the HTTP API.")

TokenName = Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is: letters, digits and . _ - @")]


@token_app.callback()
def token_root(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    common(ctx, as_json, socket)


@token_app.command("create")
def token_create(
    ctx: typer.Context,
    name: TokenName,
    *,
    scope: Annotated[
        str,
        typer.Option("--scope", metavar="SCOPES", help="inference, manage (load, unload and fetch), or both."),
    ] = "inference",
    expires: Annotated[
        str, typer.Option("--expires", metavar="TIME", help="End it after so long: 30d, 12h, never.")
    ] = "never",
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Make a token and print it, this once: lmd keeps a hash of it."""
    from lmctl.commands.tokens import create_token

    create_token(common(ctx, as_json, socket), name, scope, expires)


@token_app.command("ls")
def token_ls(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """List the tokens."""
    from lmctl.commands.tokens import list_tokens

    list_tokens(common(ctx, as_json, socket))


@token_app.command("revoke")
def token_revoke(ctx: typer.Context, name: TokenName, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """End a token. It counts at once."""
    from lmctl.commands.tokens import revoke_token

    revoke_token(common(ctx, as_json, socket), name)
