"""Watching downloads: the daemon owns them, so a watcher may come, go, and outlive the daemon."""

import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from lmctl.client import Client
from lmctl.errors import CommandError, Unreachable
from lmctl.output import console, note, print_json_line
from lmctl.text import duration, one_line, size
from lmd.protocol import DownloadChanged, DownloadRow

PATIENCE_SECONDS = 60.0
"""How long a daemon that went away may take to come back before watching ends."""
AGAIN_SECONDS = 0.5
ENDED = frozenset({"completed", "cancelled"})
RESTING = ENDED | {"failed", "paused"}

Shown = Callable[[DownloadRow], None]


def follow(client: Client, route: str) -> Iterator[DownloadRow]:
    """Rows as they change, until the stream says that it rests. Attaches again where the daemon goes and comes back.

    `Unreachable` when it stays away.
    """
    lost = 0.0
    while True:
        trouble: CommandError | None = None
        row: DownloadRow | None = None
        try:
            for event in client.events("GET", route):
                if isinstance(event, DownloadChanged):
                    lost, row = 0.0, event.download
                    yield row
        except CommandError as error:
            if error.code not in ("failed", "unreachable"):  # it has answered, and refused
                raise
            trouble = error
        if trouble is None and row is not None and row.state in RESTING:
            return
        now = time.monotonic()
        if not lost:
            lost = now
            note("lmd has gone; waiting for it to come back.")
        if now - lost > PATIENCE_SECONDS:
            raise Unreachable(
                f"lmd has not come back within {PATIENCE_SECONDS:.0f} s.",
                hint="The download goes on when lmd is started again: 'systemctl start lmd'.",
            ) from trouble
        time.sleep(AGAIN_SECONDS)


def watch(client: Client, row: DownloadRow, *, as_json: bool) -> DownloadRow:
    """Show the download until it rests; returns the row in which it does. KeyboardInterrupt passes through."""
    last = row
    with shown(as_json=as_json) as show:
        for last in follow(client, f"/downloads/{row.id}/events"):
            show(last)
    return last


def shown(*, as_json: bool) -> AbstractContextManager[Shown]:
    """What shows rows: JSON lines, bars on a terminal, else a line for each change of state and each tenth."""
    if as_json:
        return nullcontext(lambda row: print_json_line(DownloadChanged(row)))
    if not console(err=True).is_terminal:
        return nullcontext(_Lines())
    from lmctl.bars import Bars

    return Bars()


class _Lines:
    """On standard error: progress is no output."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, int]] = {}

    def __call__(self, row: DownloadRow) -> None:
        tenth = 10 * row.received // row.size if row.size else 10
        if self._told.get(row.id) != (row.state, tenth):
            self._told[row.id] = row.state, tenth
            more = f", {facts(row)}" if facts(row) not in ("", row.state) else ""
            note(f"{label(row)}: {row.state}, {10 * tenth} % of {size(row.size)}{more}")


def label(row: DownloadRow) -> str:
    return f"{row.model}@{row.quantization.lower()}"


def facts(row: DownloadRow) -> str:
    """Speed and time left while bytes come; else what it waits for."""
    match row.state:
        case "downloading" if row.rate:
            return f"{size(int(row.rate))}/s, {duration(row.eta)} left" if row.eta is not None else ""
        case "waiting":
            return f"{row.note}; next try in {duration(row.retry_in)}"
        case "queued":
            return "waits for its turn"
        case "verifying" | "paused":
            return row.state
    return ""


def ended(row: DownloadRow) -> str:
    """The sentence that tells how it ended. Raises where it did not end well."""
    match row.state:
        case "completed":
            had = "is on disk already" if row.already else "is complete"
            how = f"; load it with 'lmctl load {row.key}'" if row.key and row.format == "gguf" else ""
            mlx = "; this build of lmd has no engine for MLX models" if row.format == "mlx" else ""
            lost = "" if row.key else "; but the library finds no model in it: 'lmctl ls' tells why"
            return f"{row.key or label(row)} {had} ({size(row.size)}){how}{mlx}{lost}."
        case "failed":
            raise CommandError(row.error or "The download failed.", hint=row.hint, code=row.code or "failed")
        case "paused":
            raise CommandError(
                f"The download of {label(row)} was paused.", hint=f"lmctl downloads resume {row.id}", code="paused"
            )
    raise CommandError(f"The download of {label(row)} was cancelled.", code="cancelled")


def left_running(row: DownloadRow) -> str:
    return f"lmd goes on with it. Watch it again: lmctl downloads watch {row.id}"


def at_terminal() -> bool:
    """Somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def answered(question: str) -> str:
    """What is typed in reply, in lower case. On standard error, since a question is no output.

    KeyboardInterrupt, EOFError where nothing is.
    """
    console(err=True).print(one_line(question), end=" ")
    # An interrupt just before Python waits for keys is seen at the next key only: so it does not wait long at once.
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
    return input().strip().lower()
