"""``lmctl log``: what the models are told and answer, or the daemon's own log, as it happens."""

import json
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from lmctl.errors import CommandError
from lmctl.options import Common
from lmctl.output import console, note, print_json_line
from lmctl.text import one_line, printable
from lmd.protocol import Answered, AnswerEnded, ControlEvent, LogLine, Prompted

_LEVELS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "red", "critical": "bold red"}


def follow(common: Common, source: str, *, show: Collection[str], stats: bool) -> None:
    """Until Ctrl-C, which is how it is meant to end. ``show``: input, output, or both."""

    def watching() -> None:
        if source == "model":
            note("Watching what begins from now on. Ctrl-C ends.")

    events = common.client().events("GET", f"/log?source={source}", on_open=watching)
    told = JsonLines(show) if common.json else Screen(show, stats=stats)
    try:
        for event in events:
            if not isinstance(event, LogLine):
                told.tell(event)
            elif common.json:
                print_json_line(event)
            else:
                print_log_line(event)
    except KeyboardInterrupt:
        return
    finally:
        events.close()
    raise CommandError("lmd closed the log; it is stopping or has died.", hint="See 'systemctl status lmd'.")


def print_log_line(line: LogLine) -> None:
    from rich.text import Text

    clock = time.strftime("%H:%M:%S", time.localtime(line.at))
    fields = "".join(f" {name}={_quoted(value)}" for name, value in line.fields.items())
    console().print(
        Text.assemble(
            (clock, "dim"),
            " ",
            (f"{line.level.upper():<7}", _LEVELS.get(line.level, "")),
            f" {printable(line.logger)}: {printable(line.message)}",
            (printable(fields), "dim"),
        ),
        soft_wrap=True,
    )
    sys.stdout.flush()


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if not value or any(c.isspace() or c == '"' for c in value) else value


class JsonLines:
    """One line for each prompt and, when it has ended, one for each answer, whole and with its figures."""

    def __init__(self, show: Collection[str]) -> None:
        self._show = show
        self._prompts: dict[int, Prompted] = {}
        self._answers: dict[int, list[str]] = {}

    def tell(self, event: ControlEvent) -> None:
        match event:
            case Prompted():
                self._prompts[event.sequence] = event
                if "input" in self._show:
                    print_json_line({"type": "input", **_origin(event), "at": event.at, "text": event.text})
            case Answered(sequence, text) if sequence in self._prompts:
                self._answers.setdefault(sequence, []).append(text)
            case AnswerEnded(sequence) if sequence in self._prompts:
                prompt, pieces = self._prompts.pop(sequence), self._answers.pop(sequence, [])
                if "output" in self._show:
                    stats = {name: getattr(event, name) for name in _FIGURES}
                    told = {"at": event.at, "text": "".join(pieces), "reason": event.reason}
                    more = {"stop": event.stop, "error": event.error, "stats": stats}
                    print_json_line({"type": "output", **_origin(prompt), **told, **more})


_FIGURES = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "queue_seconds",
    "prompt_seconds",
    "generation_seconds",
    "tokens_per_second",
)


def _origin(prompt: Prompted) -> dict[str, object]:
    return {name: getattr(prompt, name) for name in ("sequence", "model", "instance", "request", "choice")}


@dataclass(slots=True)
class Shown:
    """One sequence on the screen, or waiting to be."""

    prompt: Prompted
    held: list[str] = field(default_factory=list)
    """What it answered while another one was being shown."""
    ended: AnswerEnded | None = None


class Screen:
    """One answer at a time as it streams; what others say meanwhile follows when it has ended."""

    def __init__(self, show: Collection[str], *, stats: bool) -> None:
        self._show = show
        self._stats = stats
        self._out = console()
        self._open: dict[int, Shown] = {}
        """In the order in which they began to answer."""
        self._current: int | None = None
        self._last = "\n"

    def tell(self, event: ControlEvent) -> None:
        match event:
            case Prompted():
                self._open[event.sequence] = Shown(event)
                if "input" in self._show:
                    self._prompt(event)
            case Answered(sequence, text) if sequence in self._open:
                self._open[sequence].held.append(text)
                self._go_on()
            case AnswerEnded(sequence) if sequence in self._open:
                self._open[sequence].ended = event
                self._go_on()

    def _prompt(self, prompt: Prompted) -> None:
        self._interrupt()
        self._head("input", prompt, prompt.at)
        self._write(prompt.text)
        self._write("" if self._last == "\n" else "\n")

    def _interrupt(self) -> None:
        """Another one has something to say in between: the answer on the screen goes on under a title of its own."""
        if self._current is not None:
            self._write("" if self._last == "\n" else "\n")
            self._current = None

    def _go_on(self) -> None:
        while shown := self._next():
            self._answer(shown)
            if shown.ended is None:
                return
            self._end(shown, shown.ended)

    def _next(self) -> Shown | None:
        """Whose answer is shown: the one begun on the screen, else the first that has said something or ended."""
        if self._current is not None:
            shown = self._open[self._current]
            return shown if shown.held or shown.ended else None
        return next((shown for shown in self._open.values() if shown.held or shown.ended), None)

    def _answer(self, shown: Shown) -> None:
        text, shown.held = "".join(shown.held), []
        if self._current is None:
            self._current = shown.prompt.sequence
            if "output" in self._show:
                self._head("output", shown.prompt, time.time())
        if "output" in self._show:
            self._write(text)

    def _end(self, shown: Shown, ended: AnswerEnded) -> None:
        del self._open[shown.prompt.sequence]
        self._current = None
        if "output" in self._show:
            self._write("" if self._last == "\n" else "\n")
            if ended.error:
                self._line(f"failed: {ended.error}", "red")
        if self._stats:
            self._line(figures(shown.prompt, ended), "dim")

    def _head(self, what: str, prompt: Prompted, at: float) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        choice = f" choice {prompt.choice}" if prompt.choice else ""
        instance = f" on {prompt.instance}" if prompt.instance != prompt.model else ""
        self._line(
            f"── {clock} {what} #{prompt.sequence} {prompt.model}{instance}{choice} {prompt.request}", "bold cyan"
        )

    def _line(self, text: str, style: str) -> None:
        # A file gets one line for each, a terminal lines that end between words.
        self._out.print(one_line(text), style=style, soft_wrap=not self._out.is_terminal)
        self._last = "\n"
        sys.stdout.flush()

    def _write(self, text: str) -> None:
        if not text:
            return
        # What a model says must not steer the terminal; a file gets it as it is.
        sys.stdout.write(printable(text) if self._out.is_terminal else text)
        sys.stdout.flush()
        self._last = text[-1]


def figures(prompt: Prompted, ended: AnswerEnded) -> str:
    """The sequence's figures in one line; one that did not get far has none but its end."""
    facts = []
    if ended.prompt_tokens:
        facts = [
            f"{ended.prompt_tokens} tokens in ({ended.cached_tokens} cached) in {ended.prompt_seconds:.2f} s",
            f"{ended.completion_tokens} out at {ended.tokens_per_second:.1f} tokens/s",
            f"queued {ended.queue_seconds:.2f} s",
        ]
    return f"#{prompt.sequence}: " + ", ".join([*facts, f"ended by {ended.reason}"])
