"""``lmctl downloads``: what the daemon fetches, and steering it."""

import time

from lmctl.client import Client
from lmctl.commands.get import finish
from lmctl.errors import CommandError, UsageError
from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_table, say
from lmctl.text import duration, one_line, size
from lmctl.transfers import ENDED, RESTING, ended, facts, follow, label, shown
from lmd.protocol import DownloadRow

COLUMNS = (
    Column("ID"),
    Column("MODEL"),
    Column("STATE"),
    Column("DONE", keep=8, align="right"),
    Column("SIZE", keep=7, align="right"),
    Column("SPEED", keep=5, align="right"),
    Column("LEFT", keep=6, align="right"),
    Column("BEGUN", keep=1, align="right"),
)
PAST = {"pause": "paused", "resume": "goes on", "cancel": "cancelled"}


def list_downloads(common: Common) -> None:
    rows = common.client().get("/downloads", list[DownloadRow])
    if common.json:
        print_json(rows)
        return
    if not rows:
        note("No downloads. 'lmctl get' fetches a model.")
        return
    print_table(COLUMNS, [cells(row) for row in rows])
    for row in rows:
        if row.error:
            note(f"{row.id}: {row.error} {row.hint or ''}")
        elif row.note:
            note(f"{row.id}: {facts(row)}")


def cells(row: DownloadRow) -> list[str]:
    return [
        row.id,
        label(row),
        row.state,
        f"{row.received / row.size:.0%}" if row.size else "-",
        size(row.size),
        f"{size(int(row.rate))}/s" if row.rate else "-",
        duration(row.eta) if row.eta is not None else "-",
        f"{duration(time.time() - row.created_at)} ago",
    ]


def steer(common: Common, verb: str, name: str | None) -> None:
    """``verb``: pause, resume or cancel."""
    client = common.client()
    allowed = {"failed", "paused"} if verb == "resume" else None
    row = client.post(f"/downloads/{_one(client, name, allowed).id}/{verb}", None, DownloadRow)
    if common.json:
        print_json(row)
    else:
        print(one_line(f"{label(row)} {PAST[verb]}"))


def watch_downloads(common: Common, name: str | None) -> None:
    """One to its end, with the exit code of how it ends; without a name all of them, until none is under way."""
    client = common.client()
    if name is not None:
        finish(common, client, _one(client, name, None))
        return
    last = {row.id: row for row in client.get("/downloads", list[DownloadRow]) if row.state not in RESTING}
    if not last:
        note("No download is under way. 'lmctl downloads' lists those that rest.")
        return
    try:
        with shown(as_json=common.json) as show:
            for row in follow(client, "/downloads/events"):
                if row.id in last or row.state not in RESTING:
                    last[row.id] = row
                    show(row)
                if all(one.state in RESTING for one in last.values()):
                    break
    except KeyboardInterrupt:
        note("lmd goes on with them.")
        return
    if not common.json:
        for row in last.values():
            say(ended(row) if row.state == "completed" else f"{label(row)}: {row.state}")
    if any(row.state == "failed" for row in last.values()):
        raise CommandError("Not all of them arrived.", hint="'lmctl downloads' tells why.")


def _one(client: Client, name: str | None, allowed: set[str] | None) -> DownloadRow:
    """The download of an id, the beginning of one, or a model's name; without a name the only one that may be meant."""
    rows = client.get("/downloads", list[DownloadRow])
    live = [row for row in rows if row.state not in ENDED and (allowed is None or row.state in allowed)]
    if name is None:
        if len(live) == 1:
            return live[0]
        if not live:
            raise UsageError("There is no such download now.", hint="'lmctl downloads' lists them.")
        names = ", ".join(f"{row.id} ({label(row)})" for row in live)
        raise UsageError(f"Which download? There are {names}.", hint="Name one of these ids.")
    for found in (
        [row for row in rows if row.id == name],
        [row for row in live if name in (row.model, label(row))],
        [row for row in rows if row.id.startswith(name) or name in (row.model, label(row))],
    ):
        if len(found) == 1 or (found and all(row.id != name for row in found) and found[0].state in ENDED):
            return found[0]
        if found:
            names = ", ".join(f"{row.id} ({label(row)})" for row in found)
            raise UsageError(f"'{name}' could mean any of: {names}.", hint="Name one of these ids.")
    raise CommandError(
        f"There is no download '{name}'.", hint="'lmctl downloads' lists them.", code="download_not_found"
    )
