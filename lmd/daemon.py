"""The daemon's life: wire → start → serve → drain → stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from lmd import log, systemd
from lmd.api import control as control_api
from lmd.api.app import client_app, control_app
from lmd.api.completions import errors as openai_errors
from lmd.api.connections import Runner
from lmd.api.idle import Idleness
from lmd.api.listen import ControlSocket, bind_http, bound_hosts, refuse_exposed, url_of
from lmd.api.rows import current_problems
from lmd.api.served import wanted_of
from lmd.api.services import Services
from lmd.config.store import ConfigStore, Reloaded
from lmd.conversations import Conversations
from lmd.errors import LmdError, Problem
from lmd.library.catalog import Catalog
from lmd.library.downloads import RESTING, Downloads
from lmd.library.hub import Hub
from lmd.library.repository import Room
from lmd.library.transfer import Pace
from lmd.pool.pool import Pool
from lmd.pool.wanted import Origin, Wanted
from lmd.tokens import Tokens

logger = logging.getLogger(__name__)

_STATUS_SECONDS = 2.0
"""How often the service manager's STATUS is looked at; it is told only when it changed."""
_CLOSING_SECONDS = 2.0
"""What connections get to take their last bytes once everything behind them has ended."""
_EXTENSION_SECONDS = 60.0
"""By how much the service manager is asked to wait longer, each time there is a reason to."""
_M_MMAP_THRESHOLD = -3
"""Of malloc.h."""
_LARGE_BLOCK_BYTES = 128 * 1024
_LAST_CALL_SECONDS = 0.2
"""What a connection that was accepted just before an idle daemon leaves gets to say what it wants."""


@dataclass(frozen=True, slots=True)
class _Listening:
    http: Sequence[socket.socket]
    control: Sequence[socket.socket]
    own_control: ControlSocket | None
    """None: the control socket was passed by systemd, who keeps it."""
    activated: bool
    """systemd keeps the HTTP port, and starts lmd anew for who comes after it has left."""

    def close(self) -> None:
        for one in (*self.http, *self.control):
            one.close()
        if self.own_control is not None:
            self.own_control.close()


def give_back_large_blocks() -> None:
    """Have the C library give freed blocks of 128 KiB and more back to the system for good, where it is glibc.

    Of itself it keeps blocks as large as the largest that was ever freed, up to 32 MiB, on its heap: after some bodies
    of megabytes that was 25 MiB of holes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


class Daemon:
    """One per process. ``run`` returns when the daemon has stopped and left nothing behind."""

    def __init__(self, config_file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> None:
        """Reads the operator's files. ConfigError when the settings cannot be used."""
        self._config = ConfigStore(config_file, overrides)
        settings = self._config.snapshot.settings
        self._catalog = Catalog(settings.paths.models, settings.paths.cache / "headers.json")
        self._pool = Pool(lambda: self._config.snapshot.settings.models)
        self._notifier = systemd.Notifier()
        self._told: frozenset[Problem] = frozenset()
        """What of the operator's mistakes the journal has already."""
        self._is_ready = False
        self._stop = asyncio.Event()
        self._cut = asyncio.Event()
        self._idleness = Idleness()
        self._conversations = Conversations(
            settings.paths.state / "conversations.db", lambda: self._config.snapshot.settings.conversations
        )
        self._downloads = Downloads(
            next(iter(settings.paths.models), settings.paths.state / "models"),
            settings.paths.state / "downloads.json",
            Hub(os.environ),
            room=self._room,
            arrived=self._arrived,
            pace=Pace.of(os.environ),
        )
        self._services = Services(
            config=self._config,
            catalog=self._catalog,
            pool=self._pool,
            downloads=self._downloads,
            conversations=self._conversations,
            tokens=Tokens(settings.paths.state / "tokens.json", os.environ),
            reload=self.reload,
        )

    async def run(self) -> int:
        """Serve until a signal says stop. Returns the exit code. LmdError when it cannot start."""
        settings = self._config.snapshot.settings
        log.setup(settings.log.level, settings.log.format)
        give_back_large_blocks()
        self._tell_problems()
        listening = _listen(settings)
        tasks: list[asyncio.Task[None]] = []
        runners: list[web.AppRunner] = []
        self._services.metrics.attach(self._services)
        try:
            with self._signals():
                await asyncio.to_thread(self._catalog.refresh)
                await self._pool.start()
                await self._downloads.open()
                runners = await self._serve(listening)
                unsubscribe = self._config.subscribe(self._apply)
                self._catalog.subscribe(lambda _: self._tell_problems())
                self._tell_problems()
                tasks = [
                    asyncio.create_task(_lasting(self._config.watch(), "following the presets")),
                    asyncio.create_task(_lasting(self._catalog.watch(), "following the models")),
                    asyncio.create_task(_lasting(self._services.metrics.watch_loop(), "measuring the event loop")),
                    asyncio.create_task(_lasting(self._conversations.keep_limits(), "keeping conversations")),
                    asyncio.create_task(_lasting(self._show_life(), "the service manager's watchdog")),
                    asyncio.create_task(_lasting(self._leave_when_idle(runners, listening), "leaving when idle")),
                ]
                await self._preload()
                self._tell_ready()
                await self._stop.wait()
                await self._drain()
                unsubscribe()
        finally:
            await self._end(tasks, runners, listening)
        logger.info("stopped")
        return 0

    # ── start ──

    async def _serve(self, listening: _Listening) -> list[web.AppRunner]:
        bound = bound_hosts(listening.http)
        limits = self._config.snapshot.settings.limits
        clients, control = client_app(self._services, lambda: bound), control_app(self._services)
        common: dict[str, Any] = {
            "handler_cancellation": True,
            "access_log": None,
            "shutdown_timeout": _CLOSING_SECONDS,
            "handle_signals": False,
        }
        for_clients = Runner(
            clients,
            openai_errors.error_body,
            lambda: self._config.snapshot.settings.limits.stall_timeout,
            keepalive_timeout=min(limits.receive_timeout, 1e9),
            max_line_size=limits.header_size,
            max_field_size=limits.header_size,
            **common,
        )
        runners: list[web.AppRunner] = []
        for app, runner, sockets in (
            (clients, for_clients, listening.http),
            (control, Runner(control, control_api.error_body, **common), listening.control),
        ):
            app.middlewares.insert(0, self._idleness.middleware())
            await runner.setup()
            runners.append(runner)
            for one in sockets:
                await web.SockSite(runner, one).start()
        self._services.url = url_of(listening.http)
        self._services.socket = listening.control[0].getsockname()
        return runners

    async def _preload(self) -> None:
        """Load what presets with ``preload`` name, before READY. What fails is told and does not stop the daemon."""
        snapshot = self._config.snapshot
        wanted: list[Wanted] = []
        for preset in snapshot.presets.values():
            if preset.preload:
                try:
                    wanted.append(wanted_of(self._services, preset.name, origin=Origin.PRELOAD))
                except LmdError as error:
                    logger.error("preset %s cannot be preloaded: %s", preset.name, error)
        if not wanted:
            return

        def show(name: str, fraction: float) -> None:
            self._notifier.status(f"preloading {name}: {fraction:.0%}")

        preloading = asyncio.create_task(self._pool.preload(wanted, show))
        stopping = asyncio.create_task(self._stop.wait())
        # Each load has a limit of its own ([models] load_timeout), and some show no progress for minutes.
        while not (preloading.done() or stopping.done()):
            self._notifier.extend_timeout(_EXTENSION_SECONDS)
            await asyncio.wait(
                [preloading, stopping], timeout=_EXTENSION_SECONDS / 4, return_when=asyncio.FIRST_COMPLETED
            )
        stopping.cancel()
        if not preloading.done():
            preloading.cancel()
            await asyncio.wait([preloading])
            return
        for name, reason in preloading.result().items():
            logger.error("preset %s could not be preloaded: %s", name, reason)

    def _tell_ready(self) -> None:
        if self._stop.is_set():
            return
        services = self._services
        line = f"lmd ready on {services.url} (control socket {services.socket})"
        if log.stderr_is_journal(sys.stdout):
            logger.info("%s", line)
        else:
            with contextlib.suppress(OSError):
                print(line, flush=True)
        snapshot = self._config.snapshot
        logger.info("serving %d models and %d presets", len(self._catalog.models), len(snapshot.presets))
        self._is_ready = True
        self._notifier.ready(self._status_line())

    def _tell_problems(self) -> None:
        """What is wrong, or worth a warning, and was not so when this was last called."""
        problems, notices = current_problems(self._services), self._config.snapshot.notices
        for level, told in ((logging.ERROR, problems), (logging.WARNING, notices)):
            for one in told:
                if one not in self._told:
                    logger.log(level, "%s", one)
        self._told = frozenset((*problems, *notices))

    # ── serve ──

    def _status_line(self) -> str:
        rows = self._pool.rows()
        activity = self._services.activity
        what = "draining" if activity.draining else f"serving on {self._services.url}"
        return f"{what}: {len(rows)} models in memory, {activity.active} requests open, {activity.served} served"

    async def _show_life(self) -> None:
        """STATUS and WATCHDOG. It runs on the loop that serves, so a hung loop shows none; nor does a stuck pool.

        A model that is slow or hangs is no reason: it does so in a process of its own.
        """
        watchdog = systemd.watchdog_interval()
        if watchdog is None and "NOTIFY_SOCKET" not in os.environ:
            return
        told = due_before = ""
        while True:
            line = self._status_line()
            if line != told:
                self._notifier.status(line)
                told = line
            self._notifier.retry()
            due = self._pool.overdue()
            if due and due == due_before:
                logger.critical("the pool is stuck: %s", due)
            elif watchdog is not None:
                self._notifier.watchdog()
            due_before = due
            await asyncio.sleep(min(_STATUS_SECONDS, watchdog or _STATUS_SECONDS))

    async def reload(self) -> Reloaded:
        """Read the operator's files and the model directories anew; what is wrong stays as it was and is told."""
        if self._is_ready:  # before that a READY=1 would come too early
            self._notifier.reloading()
        try:
            reloaded = await self._config.reload()
            await self._catalog.update()
        finally:
            if self._is_ready:
                self._notifier.ready(self._status_line())
        return reloaded

    def _apply(self, reloaded: Reloaded) -> None:
        """What a reload changes beyond the next request's settings, however it came about."""
        settings = self._config.snapshot.settings
        if any(key.startswith("log.") for key in reloaded.settings):
            log.setup(settings.log.level, settings.log.format)
        self._tell_problems()
        names = set(reloaded.changed)
        if any(key == "models.ttl" or key.startswith("defaults.load") for key in reloaded.settings):
            names |= self._pool.names().keys()
        for name in names:
            try:
                self._pool.mark_stale(name, wanted_of(self._services, name))
            except LmdError:
                self._pool.mark_stale(name, None)
        self._pool.refresh()
        logger.info("reloaded: %s", ", ".join([*reloaded.changed, *reloaded.settings]) or "nothing changed")

    # ── leave when idle ──

    async def _leave_when_idle(self, runners: Sequence[web.AppRunner], listening: _Listening) -> None:
        """Stop the daemon once nothing has been in memory, asked for or fetched for ``[daemon] idle_exit``.

        Late by up to a tenth of that. Only where systemd would start it again.
        """
        loop = asyncio.get_running_loop()
        busy_at, warned = loop.time(), False
        while True:
            limit = self._config.snapshot.settings.daemon.idle_exit
            fetching = any(row.state not in RESTING for row in self._downloads.rows())
            if fetching or not self._pool.is_empty:
                busy_at = loop.time()
            idle = min(loop.time() - busy_at, self._idleness.seconds())
            if limit < math.inf and not listening.activated:
                if not warned:
                    logger.warning("[daemon] idle_exit has no effect: nothing would start lmd again but lmd.socket")
                    warned = True
            elif idle >= limit:
                break
            await asyncio.sleep(min(limit / 10, 10.0))
        logger.info("leaving: idle for %gs; the next connection starts lmd again", limit)
        for runner in runners:
            for site in list(runner.sites):
                await site.stop()  # from here on connections wait with systemd, for the next lmd
        await asyncio.sleep(_LAST_CALL_SECONDS)
        await self._idleness.quiet()
        self._stop.set()

    # ── what downloads need to know ──

    def _room(self) -> Room:
        budget = self._pool.room()
        return Room(free=max(0, budget.free.total), capacity=max(0, budget.capacity.total))

    async def _arrived(self, files: Sequence[Path]) -> str:
        """Have the library see ``files`` now. Returns the key of the model that they are, "" if they are none."""
        await self._catalog.update()
        return next((key for key, model in self._catalog.models.items() if set(model.parts) & set(files)), "")

    # ── stop ──

    @contextlib.contextmanager
    def _signals(self) -> Any:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self._on_stop, signal.SIGINT: self._on_stop, signal.SIGHUP: self._on_hangup}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _on_stop(self) -> None:
        if self._stop.is_set():
            self._cut.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        self._reloading = asyncio.ensure_future(_logged(self.reload()))

    async def _drain(self) -> None:
        """Take no new requests; let the open ones end, up to the limit or a second signal."""
        limit = self._config.snapshot.settings.server.drain_timeout
        activity = self._services.activity
        activity.drain()
        self._notifier.stopping(f"draining {activity.active} requests")
        if activity.active:
            logger.info("stopping: %d requests get %gs to end", activity.active, limit)
            self._notifier.extend_timeout(limit + _EXTENSION_SECONDS)
        waiting = [asyncio.ensure_future(activity.idle()), asyncio.ensure_future(self._cut.wait())]
        await asyncio.wait(waiting, timeout=limit if limit < math.inf else None, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        if activity.active:
            logger.warning("%d requests are cut short", activity.active)

    async def _end(
        self, tasks: Sequence[asyncio.Task[None]], runners: Sequence[web.AppRunner], listening: _Listening
    ) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._services.activity.drain()
        await self._downloads.close()
        await self._pool.stop()  # open streams get their error event from this
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._services.activity.idle()
        for runner in runners:
            await runner.cleanup()
        await self._conversations.close()
        listening.close()


def _listen(settings: Any) -> _Listening:
    """Every socket, before anything slow is begun: passed by systemd, else our own."""
    passed = systemd.passed_sockets()
    own = None
    control = passed.get("control", [])
    if not control:
        own = ControlSocket(settings.control.socket, settings.control.mode, settings.control.group)
        control = [own.socket]
    try:
        http = passed.get("http") or bind_http(settings.server.host, settings.server.port)
    except BaseException:
        if own is not None:
            own.close()
        raise
    activated = "http" in passed
    if activated and (settings.server.host, settings.server.port) != http[0].getsockname()[:2]:
        logger.info("[server] host and port have no effect: lmd.socket has lmd serve on %s", url_of(http))
    listening = _Listening(http, control, own, activated)
    if settings.server.auth == "off" and not settings.server.allow_insecure:
        try:
            refuse_exposed(bound_hosts(http))
        except BaseException:
            listening.close()
            raise
    return listening


async def _lasting(work: Any, what: str) -> None:
    """A task that lasts as long as the daemon. Its failure is told and costs only what it did."""
    try:
        await work
    except Exception:
        logger.exception("%s has failed", what)


async def _logged(work: Any) -> None:
    try:
        await work
    except Exception:
        logger.exception("reload failed")
