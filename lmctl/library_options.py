"""The names and options of the commands that fetch, show and remove models. What they do is in lmctl.commands."""

from pathlib import Path
from typing import Annotated

import typer

from lmctl.errors import UsageError
from lmctl.options import JsonFlag, SocketPath, common

downloads_app = typer.Typer(rich_markup_mode=None, help="Show and steer what lmd downloads.")

DownloadName = Annotated[
    str | None, typer.Argument(metavar="ID", help="A download's id, or its model. Default: the only one there is.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LibraryModel = Annotated[str, typer.Argument(metavar="MODEL", help="A model key, or an unambiguous short form.")]


def add_commands(app: typer.Typer) -> None:
    app.command("get")(get)
    app.add_typer(downloads_app, name="downloads")
    app.command("ls")(ls)
    app.command("show")(show)
    app.command("import")(import_file)
    app.command("rm")(rm)


def get(
    ctx: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Words to search for, owner/repo, owner/repo@quant, or a link to the hub."
        ),
    ],
    *,
    gguf: Annotated[bool, typer.Option("--gguf", help="Only GGUF models (the default of a search).")] = False,
    mlx: Annotated[bool, typer.Option("--mlx", help="Only MLX models, which this build can keep but not run.")] = False,
    limit: Annotated[
        int, typer.Option("-n", "--limit", metavar="N", min=1, max=100, help="The most results of a search.")
    ] = 10,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="MODEL", help="Fetch this draft model (owner/repo[@quant]) as well."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Begin, and do not watch.")] = False,
    yes: Yes = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Fetch a model from the Hugging Face hub. lmd does it: leave, and it goes on."""
    from lmctl.commands.get import get_model

    if gguf and mlx:
        raise UsageError("Say --gguf or --mlx, not both.")
    if draft is not None and "/" not in draft:
        raise UsageError(f"--draft {draft}: expected owner/repo[@quant] or a link.")
    format = "gguf" if gguf else "mlx" if mlx else None
    said = common(ctx, as_json, socket)
    get_model(said, model, format=format, limit=limit, yes=yes, draft=draft, detach=detach)


def ls(
    ctx: typer.Context,
    *,
    llm: Annotated[bool, typer.Option("--llm", help="Only language models.")] = False,
    embedding: Annotated[bool, typer.Option("--embedding", help="Only embedding models.")] = False,
    vlm: Annotated[bool, typer.Option("--vlm", help="Only models that see.")] = False,
    detailed: Annotated[bool, typer.Option("--detailed", help="Also files, vision part, template and format.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """List the models on disk."""
    from lmctl.commands.models import list_models

    kinds = {"llm": llm, "embeddings": embedding, "vlm": vlm}
    list_models(common(ctx, as_json, socket), [kind for kind, said in kinds.items() if said], detailed=detailed)


def show(
    ctx: typer.Context,
    model: LibraryModel,
    *,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template and nothing else.")] = False,
    header: Annotated[bool, typer.Option("--header", help="Print the file's metadata.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Show what a model is, what it can do, and the memory it takes at several context lengths."""
    from lmctl.commands.library import show_model

    show_model(common(ctx, as_json, socket), model, template=template, header=header)


def import_file(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or one part of a split one.")],
    *,
    copy: Annotated[bool, typer.Option("--copy", help="Leave the file where it is, and copy it.")] = False,
    hard_link: Annotated[bool, typer.Option("--hard-link", help="Give the file a second name.")] = False,
    symbolic_link: Annotated[bool, typer.Option("--symbolic-link", help="Point to the file where it is.")] = False,
    user_repo: Annotated[
        str | None, typer.Option("--user-repo", metavar="OWNER/REPO", help="Put it there. Default: a loose file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Put a model file into the library: moved, unless another way is said."""
    from lmctl.commands.importing import import_model

    ways = [way for way, said in (("copy", copy), ("hard-link", hard_link), ("symbolic-link", symbolic_link)) if said]
    if len(ways) > 1:
        raise UsageError(f"Say one of --{' and --'.join(ways)}.")
    way = ways[0] if ways else "move"
    import_model(common(ctx, as_json, socket), file, way=way, user_repo=user_repo, dry_run=dry_run)


def rm(
    ctx: typer.Context,
    model: LibraryModel,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also while it is loaded; requests end with an error.")
    ] = False,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go, and remove nothing.")] = False,
    as_json: JsonFlag = False,
    socket: SocketPath = None,
) -> None:
    """Remove a model's files from the disk."""
    from lmctl.commands.library import remove_model

    remove_model(common(ctx, as_json, socket), model, force=force, yes=yes, dry_run=dry_run)


# ── downloads ─────────────────────────────────────────────────────────────────────────────────


@downloads_app.callback(invoke_without_command=True)
def downloads_root(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """Without a command: ls."""
    said = common(ctx, as_json, socket)
    if ctx.invoked_subcommand is None:
        from lmctl.commands.downloads import list_downloads

        list_downloads(said)


@downloads_app.command("ls")
def downloads_ls(ctx: typer.Context, *, as_json: JsonFlag = False, socket: SocketPath = None) -> None:
    """List the downloads, those that have ended too."""
    from lmctl.commands.downloads import list_downloads

    list_downloads(common(ctx, as_json, socket))


@downloads_app.command("watch")
def downloads_watch(
    ctx: typer.Context, name: DownloadName = None, *, as_json: JsonFlag = False, socket: SocketPath = None
) -> None:
    """Watch one download to its end, or all."""
    from lmctl.commands.downloads import watch_downloads

    watch_downloads(common(ctx, as_json, socket), name)


@downloads_app.command("pause")
def downloads_pause(
    ctx: typer.Context, name: DownloadName = None, *, as_json: JsonFlag = False, socket: SocketPath = None
) -> None:
    """Stop a download, and keep what has come."""
    _steer(ctx, "pause", name, as_json, socket)


@downloads_app.command("resume")
def downloads_resume(
    ctx: typer.Context, name: DownloadName = None, *, as_json: JsonFlag = False, socket: SocketPath = None
) -> None:
    """Go on with a download that was paused or has failed."""
    _steer(ctx, "resume", name, as_json, socket)


@downloads_app.command("cancel")
def downloads_cancel(
    ctx: typer.Context, name: DownloadName = None, *, as_json: JsonFlag = False, socket: SocketPath = None
) -> None:
    """Stop a download, and remove what has come."""
    _steer(ctx, "cancel", name, as_json, socket)


def _steer(ctx: typer.Context, verb: str, name: str | None, as_json: bool, socket: str | None) -> None:
    from lmctl.commands.downloads import steer

    steer(common(ctx, as_json, socket), verb, name)
