"""Progress bars of downloads, on standard error. Imported where there is a terminal to draw on: rich takes its time."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Column
from rich.text import Text

from lmctl.output import console
from lmctl.text import one_line
from lmctl.transfers import Shown, facts, label
from lmd.protocol import DownloadRow

NARROW = 70
"""Columns of a terminal."""


class _Stacked(Progress):
    """Two lines a task, its name in the first: beside a long one a narrow terminal has no room."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield Text(task.description, no_wrap=True, overflow="ellipsis")
            yield self.make_tasks_table([task])


class Bars(AbstractContextManager[Shown]):
    """They are gone when it ends."""

    def __init__(self) -> None:
        out = console(err=True)
        bar = BarColumn(bar_width=12 if out.width < NARROW else 32)
        said = TextColumn("{task.fields[said]}", markup=False, style="dim", table_column=Column(no_wrap=False))
        self._drawn = _Stacked(bar, TaskProgressColumn(), said, console=out, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Shown:
        self._drawn.start()
        return self._show

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._drawn.stop()

    def _show(self, row: DownloadRow) -> None:
        if row.id not in self._tasks:
            self._tasks[row.id] = self._drawn.add_task(one_line(label(row)), total=row.size or 1, said="")
        self._drawn.update(self._tasks[row.id], completed=row.received, said=one_line(facts(row)))
