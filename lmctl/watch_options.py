"""The names and options of ``lmctl log`` and ``lmctl bench``. What they do is in lmctl.commands."""

from typing import Annotated

import typer

from lmctl.errors import UsageError
from lmctl.options import JsonFlag, SocketPath, common

BOTH = ("input", "output")
MOST_STREAMS = 256


def add_watch_commands(app: typer.Typer) -> None:
    app.command("log")(log)
    app.command("bench")(bench)


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


def bench(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model key, a preset, or an unambiguous short form.")],
    *,
    streams: Annotated[
        str, typer.Option("--streams", metavar="N,N…", help="How many requests at once, one run for each.")
    ] = "1,4,8",
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", "-p", metavar="N", min=1, max=10_000_000, help="Of each prompt.")
    ] = 512,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", metavar="N", min=2, max=10_000_000, help="Of each answer.")
    ] = 128,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Measure how fast a model reads prompts and writes answers."""
    from lmctl.commands.bench import bench_model

    try:
        numbers = [int(word) for word in streams.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(1 <= n <= MOST_STREAMS for n in numbers):
        raise UsageError(f"--streams {streams}: expected numbers from 1 to {MOST_STREAMS}, such as 1,4,8.")
    said = common(ctx, as_json, socket)
    bench_model(said, model, streams=numbers, prompt_tokens=prompt_tokens, max_tokens=max_tokens)
