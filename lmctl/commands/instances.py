"""``lmctl ps``: the models in memory, once or kept up to date."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence

from lmctl.client import Client
from lmctl.errors import CommandError
from lmctl.options import Common
from lmctl.output import Column, console, note, print_json, print_json_line, print_table, table
from lmctl.text import duration, one_line, size
from lmd.protocol import InstanceChanged, InstanceRow, PresetsChanged

COLUMNS = (
    Column("ID"),
    Column("MODEL", keep=2),
    Column("STATE"),
    Column("PID", keep=0, align="right"),
    Column("CONTEXT", keep=3, align="right"),
    Column("USE", keep=7, align="right"),
    Column("KV", keep=4, align="right"),
    Column("CACHED", keep=1, align="right"),
    Column("TOK/S", keep=5, align="right"),
    Column("MEMORY", keep=6, align="right"),
    Column("TTL LEFT", keep=8, align="right"),
)
REFRESH_SECONDS = 1.0
"""How often ``--watch`` asks again for what changes without an event: speeds, cells in use, time left."""


def list_instances(common: Common) -> None:
    rows = common.client().get("/instances", list[InstanceRow])
    if common.json:
        print_json(rows)
    elif rows:
        print_table(COLUMNS, [cells(row) for row in rows])
        for line in remarks(rows):
            note(line)
    else:
        note("No model is in memory. 'lmctl load MODEL' loads one, and so does the first request for it.")


def cells(row: InstanceRow) -> list[str]:
    return [
        row.id,
        row.model,
        row.state if row.progress >= 1 or row.state != "loading" else f"loading {row.progress:.0%}",
        str(row.pid) if row.pid else "-",
        str(row.context_length) if row.context_length else "-",
        f"{row.running}/{row.parallel}" + (f" +{row.queued}" if row.queued else "") if row.parallel else "-",
        f"{row.kv_used / row.kv_cells:.0%}" if row.kv_cells else "-",
        f"{row.cached_tokens / row.prompt_tokens:.0%}" if row.prompt_tokens else "-",
        f"{row.decode_tps:.1f}" if row.decode_tps else "-",
        size(row.memory),
        time_left(row),
    ]


def time_left(row: InstanceRow) -> str:
    if row.ttl is None or row.pinned:
        return "never"
    if row.expires_in is None:
        return duration(row.ttl)
    return duration(row.expires_in)


def remarks(rows: Sequence[InstanceRow]) -> list[str]:
    """What a person should know beyond the table, a line for each instance where there is something."""
    return [f"{row.id}: {', '.join(said)}" for row in rows if (said := _remark(row))]


def _remark(row: InstanceRow) -> list[str]:
    said = []
    if row.error:
        said.append(row.error)
    if row.deaths:
        said.append(f"died {row.deaths} times" if row.deaths > 1 else "died once")
    if row.retry_in is not None:
        said.append(f"next try in {duration(row.retry_in)}")
    if row.stale:
        said.append("settings edited since it was loaded")
    if row.pinned:
        said.append("pinned")
    return said


def watch_instances(common: Common) -> None:
    """Until Ctrl-C, which is how it is meant to end. On a terminal a live table, elsewhere a line for each change."""
    client = common.client()
    try:
        if common.json:
            for event in client.events("GET", "/events"):
                print_json_line(event)
        elif console().is_terminal:
            _live(client)
        else:
            for event in client.events("GET", "/events"):
                if isinstance(event, InstanceChanged):
                    state = "gone" if event.gone else event.instance.state
                    print(time.strftime("%H:%M:%S"), one_line(event.instance.id), state, flush=True)
    except KeyboardInterrupt:
        return
    raise CommandError("lmd closed the event stream; it is stopping or has died.", hint="See 'systemctl status lmd'.")


def _live(client: Client) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    out = console()
    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as screen:
        for _ in _wakes(client):
            rows = client.get("/instances", list[InstanceRow])
            lines = [[one_line(cell) or "-" for cell in cells(row)] for row in rows]
            below = remarks(rows) if rows else ["No model is in memory."]
            drawn = [table(COLUMNS, lines, out.width)] if rows else []
            screen.update(Group(*drawn, *(Text(one_line(line), style="dim") for line in below)), refresh=True)


def _wakes(client: Client) -> Iterator[None]:
    """Yields at once, at each event and every `REFRESH_SECONDS`; ends when the daemon closes the stream."""
    events: queue.Queue[InstanceChanged | PresetsChanged | CommandError | None] = queue.Queue()

    def read() -> None:
        try:
            for event in client.events("GET", "/events"):
                if isinstance(event, InstanceChanged | PresetsChanged):
                    events.put(event)
            events.put(None)
        except CommandError as error:
            events.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield
        try:
            event = events.get(timeout=REFRESH_SECONDS)
        except queue.Empty:
            continue
        if event is None:
            return
        if isinstance(event, CommandError):
            raise event
