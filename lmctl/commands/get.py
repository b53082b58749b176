"""``lmctl get``: find a model on the hub, and have the daemon fetch it."""

from collections.abc import Sequence
from urllib.parse import quote

import typer

from lmctl.client import Client
from lmctl.errors import CommandError, UsageError
from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_json_line, print_table, say
from lmctl.text import count, size
from lmctl.transfers import answered, at_terminal, ended, label, left_running, watch
from lmd.protocol import DownloadChanged, DownloadRow, GetBody, HubModel, HubVariant

FOUND = (
    Column("#", align="right"),
    Column("MODEL"),
    Column("DOWNLOADS", keep=3, align="right"),
    Column("PROPOSED", keep=7),
    Column("SIZE", keep=8, align="right"),
    Column("FITS", keep=8),
    Column("QUANTIZATIONS", keep=1),
)
VARIANTS = (
    Column("#", align="right"),
    Column("QUANTIZATION"),
    Column("SIZE", keep=8, align="right"),
    Column("FITS", keep=8),
    Column("FILES", keep=1, align="right"),
    Column("ON DISK", keep=4),
)
FITS = {"yes": "yes", "unloading": "after unloading others", "no": "no"}


def get_model(
    common: Common, name: str, *, format: str | None, limit: int, yes: bool, draft: str | None, detach: bool
) -> None:
    client = common.client()
    if "/" in name:
        bodies = [_named(client, name, format, yes)]
    else:
        bodies = [_found(common, client, name, format=format, limit=limit, yes=yes)]
    if draft is not None:
        bodies.append(GetBody(model=draft))
    rows = [client.post("/downloads", body, DownloadRow) for body in bodies]
    for row in rows:
        if detach and row.state != "completed":
            _tell(common, row, left_running(row))
        else:
            finish(common, client, row)


def finish(common: Common, client: Client, row: DownloadRow) -> None:
    """Watch it to its end and tell it. Ctrl-C asks what is to become of it."""
    try:
        if row.state == "completed" and row.already:
            _tell(common, row, ended(row))
        else:
            last = watch(client, row, as_json=common.json)
            said = ended(last)
            if not common.json:
                say(said)
    except KeyboardInterrupt:
        _interrupted(common, client, row)


def _tell(common: Common, row: DownloadRow, said: str) -> None:
    if common.json:
        print_json_line(DownloadChanged(row))
    else:
        say(said)


def _interrupted(common: Common, client: Client, row: DownloadRow) -> None:
    answer = ""
    if at_terminal() and not common.json:
        try:
            answer = answered("Leave it running (Enter), pause it (p) or cancel it (c)?")[:1]
        except (KeyboardInterrupt, EOFError):
            answer = ""
    if answer in ("p", "c"):
        verb, done = ("pause", "paused") if answer == "p" else ("cancel", "cancelled")
        client.post(f"/downloads/{row.id}/{verb}", None, DownloadRow)
        note(f"{label(row)} is {done}." + (f" Go on: lmctl downloads resume {row.id}" if answer == "p" else ""))
    else:
        note(left_running(row))
    raise typer.Exit(130)


# ── which one ─────────────────────────────────────────────────────────────────────────────────


def _named(client: Client, name: str, format: str | None, yes: bool) -> GetBody:
    """A repository or a link. Only a bare owner/repo leaves something to ask, and only where somebody is there."""
    body = GetBody(model=name, format=format)
    is_whole = "://" in name or "@" in name or ":" in name or name.count("/") > 1
    if yes or is_whole or not at_terminal():
        return body
    asked_for = f"&format={format}" if format else ""
    model = client.get(f"/hub/model?name={quote(name, safe='')}{asked_for}", HubModel)
    return GetBody(model=model.name, quantization=_choose_variant(model), format=format)


def _found(common: Common, client: Client, words: str, *, format: str | None, limit: int, yes: bool) -> GetBody:
    words, at, quantization = words.partition("@")
    kind = format or "gguf"
    models = client.get(f"/hub/search?q={quote(words, safe='')}&format={kind}&n={limit}", list[HubModel])
    if not models:
        raise CommandError(
            f"Nothing on the hub matches '{words}' and holds {kind.upper()} models.",
            hint="Try fewer or other words; 'lmctl get owner/repo' takes a repository that you know.",
            code="not_found",
        )
    said = quantization if at else None
    if yes or len(models) == 1:
        return GetBody(model=models[0].name, quantization=said, format=kind)
    if not at_terminal():
        if common.json:
            print_json(models)
        else:
            print_table(FOUND, [_model_cells(n, model) for n, model in enumerate(models, 1)])
        raise UsageError(
            f"'{words}' matches {len(models)} repositories, and nobody is at a terminal to choose.",
            hint=f"Name one: lmctl get {models[0].name}, or take the first with -y.",
        )
    print_table(FOUND, [_model_cells(n, model) for n, model in enumerate(models, 1)])
    model = models[_ask("Which one?", len(models), 1) - 1]
    return GetBody(model=model.name, quantization=said or _choose_variant(model), format=kind)


def _choose_variant(model: HubModel) -> str:
    if model.chosen:
        return model.chosen
    if len(model.variants) == 1:
        return model.variants[0].quantization
    print_table(VARIANTS, [_variant_cells(n, variant) for n, variant in enumerate(model.variants, 1)])
    best = next((n for n, one in enumerate(model.variants, 1) if one.quantization == model.proposed), None)
    if best is None:
        note("None of these fits this machine's memory.")
    return model.variants[_ask(f"Which quantization of {model.name}?", len(model.variants), best) - 1].quantization


def _ask(question: str, most: int, default: int | None) -> int:
    """A number from 1 to ``most``. Leaving ends the command."""
    while True:
        proposed = f" [{default}]" if default else ""
        try:
            answer = answered(f"{question} 1-{most}{proposed}, q: none")
        except (KeyboardInterrupt, EOFError):
            note("")
            raise typer.Exit(130) from None
        if answer == "" and default:
            return default
        if answer in ("q", "n", "0"):
            raise typer.Exit(130)
        if answer.isascii() and answer.isdecimal() and 1 <= int(answer[:9]) <= most:
            return int(answer)
        note(f"A number from 1 to {most}, please.")


def _model_cells(number: int, model: HubModel) -> Sequence[str]:
    best = next((one for one in model.variants if one.quantization == model.proposed), None)
    least = best or min(model.variants, key=lambda one: one.size)
    return [
        str(number),
        model.name + (" (gated)" if model.gated else ""),
        count(model.downloads),
        best.quantization if best else "-",
        size(least.size),
        FITS.get(least.fits, least.fits),
        ", ".join(_short(one) for one in model.variants),
    ]


def _short(variant: HubVariant) -> str:
    return f"{variant.quantization} {size(variant.size)}" + (" (too large)" if variant.fits == "no" else "")


def _variant_cells(number: int, variant: HubVariant) -> Sequence[str]:
    return [
        str(number),
        variant.quantization,
        size(variant.size),
        FITS.get(variant.fits, variant.fits),
        str(len(variant.files)),
        "yes" if variant.on_disk else "",
    ]
