"""The line that tells what is being waited for."""

from collections.abc import Iterator
from contextlib import contextmanager

from lmctl.output import console
from lmctl.text import one_line


class Wait:
    """A line with a spinner on standard error, until the first token. Nothing where that is no terminal."""

    def __init__(self, model: str) -> None:
        out = console(err=True)
        self._model = one_line(model)
        self._status = out.status(f"waiting for {self._model}") if out.is_terminal else None

    def start(self) -> None:
        if self._status:
            self._status.start()

    def say(self, text: str) -> None:
        if self._status and text:
            self._status.update(f"{self._model}: {one_line(text)}")

    def end(self) -> None:
        """Remove the line. May be called again."""
        if self._status:
            self._status.stop()
            self._status = None


@contextmanager
def waiting(model: str) -> Iterator[Wait]:
    wait = Wait(model)
    wait.start()
    try:
        yield wait
    finally:
        wait.end()
