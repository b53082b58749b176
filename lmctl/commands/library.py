"""``lmctl show`` and ``lmctl rm``: one model of the library."""

import sys
from urllib.parse import quote

import typer

from lmctl.commands.get import FITS
from lmctl.errors import CommandError, UsageError
from lmctl.options import Common
from lmctl.output import Column, note, print_facts, print_json, print_table, say
from lmctl.text import count, counted, one_line, printable, size
from lmctl.transfers import answered, at_terminal
from lmd.protocol import ModelDetail, RemoveBody, Removed

MEMORY = (
    Column("CONTEXT", align="right"),
    Column("AT ONCE", keep=5, align="right"),
    Column("MEMORY", align="right"),
    Column("FITS", keep=8),
)
_MOST_SHOWN = 120
"""Characters of a metadata value in the table of all of them."""


def show_model(common: Common, name: str, *, template: bool, header: bool) -> None:
    detail = common.client().get(f"/models/{quote(name)}", ModelDetail)
    if common.json:
        print_json(detail)
    elif template:
        if detail.template is None:
            raise CommandError(f"{detail.model.key} has no chat template.", code="not_found")
        sys.stdout.write(printable(detail.template) if sys.stdout.isatty() else detail.template)
        sys.stdout.write("" if detail.template.endswith("\n") else "\n")
    elif header:
        print_facts([(key, _value(value)) for key, value in detail.header.items()])
    else:
        _summary(detail)


def _summary(detail: ModelDetail) -> None:
    model = detail.model
    template = (
        f"{counted(len(detail.template.splitlines()), 'line')} ('--template' shows it)" if detail.template else "none"
    )
    facts = [
        ("model", model.key),
        ("type", model.type),
        ("format", model.format),
        ("architecture", model.architecture),
        ("parameters", count(model.n_params)),
        ("quantization", model.quantization),
        ("size", size(model.size)),
        ("context", f"{model.context_length} tokens, as trained" if model.context_length else "-"),
        ("capabilities", ", ".join(detail.capabilities) or "-"),
        ("template", template),
        ("metadata", f"{counted(len(detail.header), 'key')} ('--header' shows them)"),
        ("loaded", ", ".join(model.loaded) or "-"),
        ("presets", ", ".join(model.presets) or "-"),
        *(("file", path) for path in detail.files),
    ]
    print_facts(facts)
    if detail.memory:
        print()
        rows = [
            [str(row.context_length), str(row.parallel), size(row.total), FITS.get(row.fits, row.fits)]
            for row in detail.memory
        ]
        print_table(MEMORY, rows)
    elif model.format == "mlx":
        note("This build of lmd has no engine for MLX models.")


def _value(value: object) -> str:
    text = one_line(str(value))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}… ({len(str(value))} characters)"


def remove_model(common: Common, name: str, *, force: bool, yes: bool, dry_run: bool) -> None:
    client = common.client()
    plan = client.post("/models/remove", RemoveBody(model=name, dry_run=True), Removed)
    if dry_run:
        _tell(common, plan, "would be removed")
        return
    if plan.loaded and not force:
        raise CommandError(
            f"{plan.model} is in memory as {', '.join(plan.loaded)}.",
            hint=f"Unload it first ('lmctl unload {plan.loaded[0]}'), or say --force.",
            code="conflict",
        )
    if not yes:
        if not at_terminal():
            raise UsageError(f"Nobody is at a terminal to confirm that {plan.model} goes.", hint="Say so with -y.")
        for path in plan.files:
            note(path)
        for path in plan.kept:
            note(f"{path} stays: another model needs it.")
        try:
            answer = answered(f"Remove {plan.model} ({size(plan.freed)})? [y/N]")
        except (KeyboardInterrupt, EOFError):
            note("")
            raise typer.Exit(130) from None
        if answer not in ("y", "yes"):
            raise typer.Exit(1)
    _tell(common, client.post("/models/remove", RemoveBody(model=plan.model, force=force), Removed), "removed")


def _tell(common: Common, removed: Removed, what: str) -> None:
    if common.json:
        print_json(removed)
        return
    for path in removed.kept:
        note(f"{path} stays: another model needs it.")
    say(f"{removed.model} {what}: {counted(len(removed.files), 'file')}, {size(removed.freed)} freed")
