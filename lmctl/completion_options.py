"""The names and options of ``lmctl completion``. What it does is in lmctl.commands.completion."""

from typing import Annotated

import typer

from lmctl.errors import UsageError
from lmctl.options import Common, common


def add_completion_commands(app: typer.Typer) -> None:
    app.command("completion")(completion)
    app.command("complete", hidden=True)(complete)


def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell to complete lmctl in.")],
) -> None:
    """Print the script that completes commands, models and instances. For bash: eval "$(lmctl completion bash)"."""
    from lmctl.commands.completion import print_script

    if shell not in {"bash", "zsh", "fish"}:
        raise UsageError(f"There is no completion for {shell}.", hint="Name bash, zsh or fish.")
    print_script(shell)


def complete(ctx: typer.Context, kind: Annotated[str, typer.Argument(metavar="KIND")]) -> None:
    """Print the names that a shell may complete."""
    from lmctl.commands.completion import print_names

    print_names(common(ctx, False, None) if ctx.obj is not None else Common(), kind)
