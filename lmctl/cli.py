"""``lmctl``: the commands' names and options. What they do is in lmctl.commands, imported when a command runs.

``lmctl --help`` must be instant, so nothing is imported here but typer: no rich, no msgspec, no http.
"""

import os
import sys
from typing import Annotated

import typer

from lmctl.chats_options import chats_app
from lmctl.completion_options import add_completion_commands
from lmctl.errors import CommandError, UsageError
from lmctl.library_options import add_commands
from lmctl.options import JsonFlag, SocketPath, common
from lmctl.token_options import token_app
from lmctl.watch_options import add_watch_commands

app = typer.Typer(
    name="lmctl",
    help="Steer lmd, the daemon that serves local language models.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 lmd cannot be reached.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
preset_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Show and check presets.")
app.add_typer(preset_app, name="preset")
app.add_typer(token_app, name="token")
add_commands(app)
add_watch_commands(app)
app.add_typer(chats_app, name="chats")

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model key, a preset, or an unambiguous short form.")]


def seconds(text: str) -> float:
    """A duration as an option's value."""
    from lmd.protocol import parse_duration

    try:
        return parse_duration(text)
    except ValueError as exc:
        raise typer.BadParameter(f"'{text}': {exc}") from exc


Ttl = Annotated[
    float | None,
    typer.Option("--ttl", metavar="TIME", parser=seconds, help="Unload after so long without use: 300, 5m, 1h, never."),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lmctl {version('lmd')}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")]


@app.callback()
def root(
    ctx: typer.Context,
    *,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    common(ctx, as_json, socket)


@app.command()
def status(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """Show how the daemon is doing."""
    from lmctl.commands.status import show_status

    show_status(common(ctx, as_json, socket))


@app.command()
def ps(
    ctx: typer.Context,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the list up to date until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """List the models in memory."""
    from lmctl.commands.instances import list_instances, watch_instances

    (watch_instances if watch else list_instances)(common(ctx, as_json, socket))


@app.command()
def load(
    ctx: typer.Context,
    model: ModelName,
    *,
    ttl: Ttl = None,
    context_length: Annotated[
        int | None,
        typer.Option("--context-length", "-c", metavar="N", min=1, help="The most tokens that one sequence may hold."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", metavar="N", min=1, help="Sequences computed at once; more wait in a queue."),
    ] = None,
    identifier: Annotated[
        str | None, typer.Option("--identifier", metavar="ID", help="The name that requests use for this instance.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="auto|max|off|N", help="Layers to keep in the GPU's memory.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a preset's [load]; may be repeated."),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Replace the running instance by one with the current settings.")
    ] = False,
    estimate_only: Annotated[
        bool, typer.Option("--estimate-only", help="Tell what it would take and whether that fits; load nothing.")
    ] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Load a model into memory. Without --ttl it stays until 'lmctl unload'."""
    from lmctl.commands.load import estimate_model, load_body, load_model

    said = common(ctx, as_json, socket)
    body = load_body(
        model,
        ttl=ttl,
        identifier=identifier,
        context_length=context_length,
        parallel=parallel,
        gpu=gpu,
        more=settings or [],
        reload=reload,
    )
    (estimate_model if estimate_only else load_model)(said, body)


@app.command()
def unload(
    ctx: typer.Context,
    instance: Annotated[str | None, typer.Argument(metavar="ID", help="An instance's id, from 'lmctl ps'.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Unload every instance.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also while requests use it; they end with an error.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Take a model out of memory."""
    from lmctl.commands.load import unload_instances

    if (instance is None) is not every:
        raise UsageError("Name either one instance or --all.", hint="See 'lmctl ps' for the ids.")
    unload_instances(common(ctx, as_json, socket), instance, force=force)


@app.command()
def reload(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """Read lmd.toml and the presets anew."""
    from lmctl.commands.presets import reload_config

    reload_config(common(ctx, as_json, socket))


@app.command()
def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Default: the model in memory, or the only one on disk.")
    ] = None,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask this, print the answer and leave.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system prompt.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell tokens and speed after each answer.")] = False,
    ttl: Ttl = None,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Talk to a model. Text on standard input is part of the prompt; Ctrl-C stops the answer."""
    from lmctl.commands.chat import run_chat

    run_chat(common(ctx, as_json, socket), model, prompt=prompt, system=system, stats=stats, ttl=ttl)


@preset_app.callback()
def preset_root(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    common(ctx, as_json, socket)


@preset_app.command("ls")
def preset_ls(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """List the presets."""
    from lmctl.commands.presets import list_presets

    list_presets(common(ctx, as_json, socket))


@preset_app.command("show")
def preset_show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A preset's name or alias.")],
    *,
    effective: Annotated[
        bool, typer.Option("--effective", help="Every setting that applies, and where each comes from.")
    ] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Show a preset's file, or with --effective what it comes to."""
    from lmctl.commands.presets import show_preset

    show_preset(common(ctx, as_json, socket), name, effective=effective)


@preset_app.command("check")
def preset_check(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """Check the preset files on disk without applying them. Exits with 1 if any is wrong."""
    from lmctl.commands.presets import check_presets

    check_presets(common(ctx, as_json, socket))


add_completion_commands(app)


def main() -> None:
    """The console script. Ends the process."""
    code = _run()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
    sys.exit(code)


def _run() -> int:
    try:
        app(prog_name="lmctl")
    except CommandError as error:
        from lmctl.output import print_error

        print_error(error, as_json="--json" in sys.argv)
        return error.exit_code
    except SystemExit as end:
        # The reader (head, less) has enough, which is no failure of ours; typer makes it one.
        if isinstance(end.__context__, BrokenPipeError):
            _forget_output()
            return 0
        return end.code if isinstance(end.code, int) else 0
    return 0


def _forget_output() -> None:
    """Let what is still buffered go nowhere: Python would try again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)


if __name__ == "__main__":
    main()
