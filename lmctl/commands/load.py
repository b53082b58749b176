"""``lmctl load`` and ``lmctl unload``."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import typer

from lmctl.errors import CommandError, UsageError
from lmctl.options import Common
from lmctl.output import console, note, print_facts, print_json, say
from lmctl.text import duration, one_line, size
from lmd.protocol import Done, Estimate, InstanceRow, LoadBody, Progress, UnloadBody

ALL_LAYERS = 10_000
"""More layers than any model has: llama.cpp takes it for "all of them"."""


def load_body(
    model: str,
    *,
    ttl: float | None,
    identifier: str | None,
    context_length: int | None,
    parallel: int | None,
    gpu: str | None,
    more: Sequence[str],
    reload: bool,
) -> LoadBody:
    """What the options ask for. ``more`` are KEY=VALUE texts for ``[load]``; the daemon checks keys and values."""
    said: dict[str, object] = dict(_setting(text) for text in more)
    if context_length is not None:
        said["context_length"] = context_length
    if parallel is not None:
        said["parallel"] = parallel
    if gpu is not None:
        said["gpu_layers"] = _gpu_layers(gpu)
    stay = None if ttl is None or math.isinf(ttl) else ttl
    return LoadBody(model=model, ttl=stay, identifier=identifier, load=said, reload=reload)


def _setting(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise UsageError(f"--set {text}: expected KEY=VALUE.", hint="For example --set kv_cache_type=q8_0")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _gpu_layers(text: str) -> int | str:
    match text:
        case "auto":
            return "auto"
        case "max":
            return ALL_LAYERS
        case "off":
            return 0
    if text.isdecimal():
        return int(text)
    raise UsageError(f"--gpu {text}: expected auto, max, off or a number of layers.")


def load_model(common: Common, body: LoadBody) -> None:
    done = None
    with _bar(body.model, visible=not common.json) as bar:
        try:
            for event in common.client().events("POST", "/load", body):
                if isinstance(event, Progress):
                    bar.show(event.fraction, event.note)
                elif isinstance(event, Done):
                    done = event
        except KeyboardInterrupt:
            note(f"lmd goes on loading; 'lmctl unload {body.identifier or body.model}' takes it back.")
            raise
    if done is None or done.instance is None:
        raise CommandError("lmd ended the load without a result.", hint="See its journal: journalctl -u lmd -e")
    if common.json:
        print_json(done)
    else:
        say(summary(done, done.instance))


def estimate_model(common: Common, body: LoadBody) -> None:
    """Exits with 1 where the model can never fit."""
    body.estimate_only = True
    estimate = common.client().post("/load", body, Estimate)
    if common.json:
        print_json(estimate)
    else:
        parts = [("weights", estimate.weights), ("KV cache", estimate.kv), ("compute buffers", estimate.compute)]
        parts += [("draft model", estimate.draft)] if estimate.draft else []
        facts = [(name, size(n)) for name, n in [*parts, ("total", estimate.total), ("free now", estimate.free)]]
        print_facts([*facts, ("verdict", verdict(estimate))])
    if estimate.least > estimate.capacity:
        raise typer.Exit(1)


def verdict(estimate: Estimate) -> str:
    if estimate.total <= estimate.free:
        return "fits"
    if estimate.total <= estimate.capacity:
        return "fits once other models have left"
    if estimate.least <= estimate.capacity:
        return f"fits with a smaller KV cache, from {size(estimate.least)} on"
    return f"does not fit: {size(estimate.least)} is the least, {size(estimate.capacity)} is all there is"


def summary(done: Done, row: InstanceRow) -> str:
    how = "was loaded already" if done.already else f"loaded in {done.seconds:.1f} s"
    stay = "stays until unloaded" if row.ttl is None else f"leaves after {duration(row.ttl)} without use"
    slots = f"{row.parallel} at once" if row.parallel else ""
    facts = [
        f"{row.context_length} tokens of context" if row.context_length else "",
        slots,
        size(row.memory).strip("-"),
    ]
    return f"{row.id} {how}: " + ", ".join(fact for fact in [*facts, stay] if fact)


class Bar(Protocol):
    def show(self, fraction: float, text: str) -> None: ...


class _NoBar:
    def show(self, fraction: float, text: str) -> None:
        pass


@contextmanager
def _bar(model: str, *, visible: bool) -> Iterator[Bar]:
    """A progress bar on standard error where that is a terminal. It is gone when the load ends."""
    out = console(err=True)
    if not (visible and out.is_terminal):
        yield _NoBar()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Drawn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Drawn(*columns, console=out, transient=True) as drawn:
        task = drawn.add_task(one_line(model), total=1.0)

        class Shown:
            def show(self, fraction: float, text: str) -> None:
                said = f"{model}: {text}" if text else model
                drawn.update(task, completed=min(max(fraction, 0.0), 1.0), description=one_line(said))

        yield Shown()


def unload_instances(common: Common, instance: str | None, *, force: bool) -> None:
    """``instance`` None: every one."""
    gone = common.client().post("/unload", UnloadBody(id=instance, all=instance is None, force=force), list[str])
    if common.json:
        print_json(gone)
    elif gone:
        for name in gone:
            print(f"unloaded {one_line(name)}")
    else:
        note("No model was in memory.")
