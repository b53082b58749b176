"""The names and options of ``lmctl log`` and ``lmctl bench``. What they do is in lmctl.commands."""

from typing import Annotated

import typer

from lmctl.errors import UsageError
from lmctl.options import JsonFlag, SocketPath, common

BOTH = ("input", "output")


def add_watch_commands(app: typer.Typer) -> None:
    app.command("log")(log)


def log(
    ctx: typer.Context,
    *,
    source: Annotated[
        str, typer.Option("--source", metavar="model|server", help="The models' prompts and answers, or lmd's own log.")
    ] = "model",
    filter_: Annotated[
        str | None,
        typer.Option("--filter", metavar="input,output", help="Only prompts, or only answers.  [default: both]"),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell tokens and speed after each answer.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Watch the exact text that models get and what they answer, live. lmd keeps none of it."""
    from lmctl.commands.log import follow

    if source not in {"model", "server"}:
        raise UsageError(f"--source {source}: expected model or server.")
    if source == "server" and (filter_ is not None or stats):
        raise UsageError("--filter and --stats go with --source model.")
    show = [word.strip() for word in filter_.split(",")] if filter_ is not None else list(BOTH)
    if wrong := [word for word in show if word not in BOTH]:
        raise UsageError(f"--filter {filter_}: expected input, output or input,output, not '{wrong[0]}'.")
    follow(common(ctx, as_json, socket), source, show=show, stats=stats)
