"""What goes wrong around lmd in a chaos run. Each vandal works until it is cancelled, and can mend what it did."""

import asyncio
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.bench.chaos_clients import MODELS, SPOILED
from tests.bench.server import ServerFailed
from tests.bench.supervised import Supervised

_ROOT = Path(__file__).parents[2]
ORPHAN_SECONDS = 5.0
"""After the daemon's death, until its workers must be gone."""
_LMCTL = (sys.executable, "-c", "from lmctl.cli import main; main()")


class Vandals:
    """All of them. ``deeds`` counts what they did, ``faults`` tells what lmd did not stand."""

    def __init__(self, daemon: Supervised, dice: random.Random, clock: Path | None, small_disk: bool) -> None:
        """``clock``: the file that the preloaded clock reads. ``small_disk``: the daemon's folder may be filled."""
        self.daemon = daemon
        self.deeds: Counter[str] = Counter()
        self.faults: list[str] = []
        self.starts: list[float] = []
        """Seconds from a daemon's end to the next one's READY."""
        self._dice = dice
        self._clock = clock
        self._small_disk = small_disk
        self._down: list[tuple[float, float]] = []
        """When the daemon was not there, by the event loop's clock."""
        self._restarting = asyncio.Lock()
        """Nobody spoils lmd.toml while it is read at a start: that lmd then refuses to start is right."""

    def interrupted(self, since: float) -> bool:
        return any(end >= since for _, end in self._down)

    def at_work(self, daemon_too: bool) -> list[Awaitable[None]]:
        works = [self._workers(), self._presets(), self._models(), self._operator(), self._settings()]
        if self._small_disk:
            works.append(self._disk())
        if self._clock is not None:
            works.append(self._time())
        if daemon_too:
            works.append(self._kill_daemon())
        return works

    def mend(self) -> None:
        """As it was in the beginning, but for the daemon itself."""
        (self.daemon.folder / "filler").unlink(missing_ok=True)
        if self._clock is not None:
            self._set_clock(0)
        for path in (self.daemon.folder / "presets.d").iterdir():
            if path.stem != "steady":
                remove(path)
        models = self.daemon.folder / "models"
        for path in models.iterdir():
            if path.name not in {f"{name}.gguf" for name in MODELS} and path.suffix != ".away":
                remove(path)
        for path in models.glob("*.away"):
            path.rename(path.with_suffix(".gguf"))
        self.daemon.config.write_text(self.settings)

    @property
    def settings(self) -> str:
        return (self.daemon.folder.parent / "lmd.toml.right").read_text()

    async def _pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self._dice.uniform(least, most))

    # ── processes ──

    def children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.daemon.pid).children(recursive=True)
        return []

    async def _workers(self) -> None:
        while True:
            await self._pause(1.0, 5.0)
            children = self.children()
            if not children:
                continue
            victim = self._dice.choice(children)
            deed = self._dice.choices(("SIGKILL", "SIGSEGV", "SIGSTOP"), (6, 2, 2))[0]
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.Signals[deed])
                self.deeds[f"workers: {deed}"] += 1
                if deed == "SIGSTOP":
                    try:
                        await self._pause(0.5, 3.0)
                    finally:
                        victim.send_signal(signal.SIGCONT)

    async def _kill_daemon(self) -> None:
        while True:
            await self._pause(8.0, 20.0)
            # A round that ends here must not leave lmd down.
            await asyncio.shield(asyncio.ensure_future(self._restart()))

    async def restarted(self) -> None:
        """Wait for the start that is under way."""
        async with self._restarting:
            pass

    async def _restart(self) -> None:
        async with self._restarting:
            await self._end_and_start()

    async def _end_and_start(self) -> None:
        loop = asyncio.get_running_loop()
        number = self._dice.choices((signal.SIGKILL, signal.SIGTERM), (7, 3))[0]
        children = self.children()
        began = loop.time()
        self._down.append((began, float("inf")))
        self.deeds[f"daemon: {number.name}"] += 1
        try:
            await self.daemon.end(number)
            ended = loop.time()
            if number == signal.SIGTERM and self.daemon.exit_code != 0:
                self.faults.append(f"lmd ended with {self.daemon.exit_code} after SIGTERM")
            gone = await asyncio.to_thread(psutil.wait_procs, children, ORPHAN_SECONDS)
            self.faults += [f"worker {one.pid} outlived its daemon" for one in gone[1]]
            await self.daemon.start()
        except ServerFailed as exc:
            self.faults.append(str(exc))
            return
        self.starts.append(loop.time() - ended)
        self._down[-1] = (began, loop.time())

    # ── the disk ──

    async def _disk(self) -> None:
        filler = self.daemon.folder / "filler"
        while True:
            await self._pause(4.0, 10.0)
            self.deeds["disk: full"] += 1
            try:
                with filler.open("wb", buffering=0) as file, suppress(OSError):
                    for size in (1 << 20, 1 << 12, 1):
                        with suppress(OSError):
                            while True:
                                if not file.write(bytes(size)):
                                    break
                await self._pause(1.0, 4.0)
            finally:
                filler.unlink(missing_ok=True)

    async def _presets(self) -> None:
        folder = self.daemon.folder / "presets.d"
        while True:
            await self._pause(0.1, 0.8)
            path = folder / f"{self._dice.choice(SPOILED)}.toml"
            deed = self._dice.choice(sorted(PRESET_DEEDS))
            with suppress(OSError):
                remove(path)
                PRESET_DEEDS[deed](path, self._dice)
                self.deeds["presets: spoiled"] += 1

    async def _models(self) -> None:
        folder = self.daemon.folder / "models"
        while True:
            await self._pause(1.0, 4.0)
            junk = folder / "junk.gguf"
            with suppress(OSError):
                match self._dice.randrange(5):
                    case 0:
                        junk.write_bytes(b"GGUF" + self._dice.randbytes(5000))
                    case 1:
                        whole = (folder / f"{MODELS[0]}.gguf").read_bytes()
                        junk.write_bytes(whole[: self._dice.randrange(len(whole))])
                    case 2:
                        remove(junk)
                        junk.symlink_to(junk)
                    case 3:
                        remove(junk)
                    case _:
                        there, away = folder / f"{MODELS[2]}.gguf", folder / f"{MODELS[2]}.away"
                        there.rename(away)
                        try:
                            await self._pause(0.2, 2.0)
                        finally:
                            away.rename(there)
                self.deeds["models: spoiled"] += 1

    async def _settings(self) -> None:
        """Now and then lmd.toml is wrong for a moment."""
        while True:
            await self._pause(5.0, 12.0)
            async with self._restarting:
                wrong = self._dice.choice(("[server", "[server]\nport = 'x'", "\0\xff", "[nothing]\na = 1", ""))
                try:
                    self.daemon.config.write_text(self.settings.replace("[server]", wrong, 1))
                    self.deeds["lmd.toml: spoiled"] += 1
                    await self._pause(0.2, 1.5)
                except OSError:  # the disk is full just now
                    pass
                finally:
                    await self._write_settings()

    async def _write_settings(self) -> None:
        """Beside it and renamed: a full disk leaves no half of it."""
        right = self.daemon.folder.parent / "lmd.toml.right"
        while True:
            try:
                new = self.daemon.config.with_suffix(".new")
                shutil.copy(right, new)
                new.rename(self.daemon.config)
                return
            except OSError:
                (self.daemon.folder / "filler").unlink(missing_ok=True)

    # ── time and people ──

    async def _time(self) -> None:
        while True:
            await self._pause(1.0, 5.0)
            self._set_clock(self._dice.choice((-400 * 86400, -86400, -3600, -5, 0, 5, 3600, 86400, 4000 * 86400)))
            self.deeds["clock: jumps"] += 1

    def _set_clock(self, seconds: int) -> None:
        assert self._clock is not None
        with self._clock.open("r+b") as file:
            file.write(struct.pack("<q", seconds))

    async def _operator(self) -> None:
        commands = (
            ("status",), ("ps",), ("ls",), ("preset", "check"), ("reload",), ("unload", "--all"), ("chats", "ls"),
            ("load", MODELS[0], "--ttl", "2s"), ("load", MODELS[1], "--ttl", "2s"), ("load", "none-such"),
            ("preset", "show", SPOILED[0]),
        )  # fmt: skip
        while True:
            await self._pause(1.0, 4.0)
            command = self._dice.choice(commands)
            status, output = await self.lmctl(*command)
            self.deeds["lmctl commands"] += 1
            if "Traceback" in output or status not in {0, 1, 3}:
                self.faults.append(f"lmctl {' '.join(command)} ended with {status}: {output[-600:]}")

    async def lmctl(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and everything that it said."""
        child = await asyncio.create_subprocess_exec(
            *_LMCTL, "--socket", str(self.daemon.socket), *arguments,
            cwd=_ROOT, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(120):
                output, _ = await child.communicate()
        except (TimeoutError, asyncio.CancelledError) as exc:
            child.kill()
            await child.wait()
            if isinstance(exc, asyncio.CancelledError):
                raise
            return -1, "no end within 120 s"
        assert child.returncode is not None
        return child.returncode, output.decode(errors="replace")


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _half(path: Path, dice: random.Random) -> None:
    text = 'model = "model-a"\n[sampling]\ntemperature = 0.5\n[chat]\nsystem_prompt = "x"\n'
    path.write_text(text[: dice.randrange(len(text))])


PRESET_DEEDS: dict[str, Callable[[Path, random.Random], object]] = {
    "right": lambda path, dice: path.write_text(f'model = "{dice.choice(MODELS)}"\n[sampling]\ntemperature = 0\n'),
    "gone": lambda path, dice: None,
    "half": _half,
    "noise": lambda path, dice: path.write_bytes(dice.randbytes(300)),
    "huge": lambda path, dice: path.write_text("# " + "x" * 2_000_000),
    "circle": lambda path, dice: path.write_text(f'extends = "{path.stem}"\n'),
    "wrong": lambda path, dice: path.write_text('model = 5\n[sampling]\ntemperature = "hot"\nwhat = 1\n'),
    "folder": lambda path, dice: path.mkdir(),
    "loop": lambda path, dice: path.symlink_to(path),
    "elsewhere": lambda path, dice: path.symlink_to("/dev/zero"),
    "pipe": lambda path, dice: os.mkfifo(path),
    "alias of another": lambda path, dice: path.write_text('model = "model-b"\naliases = ["model-a", "steady"]\n'),
}


def preload(folder: Path) -> tuple[dict[str, str], Path | None]:
    """The environment in which a process's clock can be set, and the file that sets it. None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {}, None
    library, offset = folder / "clock.so", folder / "clock"
    offset.write_bytes(bytes(8))
    source = Path(__file__).with_name("clock_jump.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "LMD_CLOCK_OFFSET": str(offset)}, offset


def mounted(folder: Path, size: str = "48m") -> bool:
    """Mount a small disk in memory at ``folder``, if we may."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def unmount(folder: Path) -> None:
    end = time.monotonic() + 10
    while subprocess.run(["umount", str(folder)], capture_output=True).returncode and time.monotonic() < end:
        time.sleep(0.2)
