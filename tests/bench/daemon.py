"""lmd under measurement: the real daemon process on a configuration of its own, in a folder of its own."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.server import (
    START_SECONDS,
    Server,
    ServerFailed,
    Setup,
    names_of,
    process,
    served_models,
    tail,
    until_healthy,
)

_READY = re.compile(r"^lmd ready on (http://\S+)", re.MULTILINE)


def configuration(folder: Path, setup: Setup) -> str:
    """``lmd.toml`` for ``setup``, with everything that lmd writes within ``folder``."""
    # JSON's strings and lists of strings are TOML's.
    return "\n".join(
        [
            "[server]",
            "port = 0",
            "[control]",
            f"socket = {json.dumps(str(folder / 'lmd.sock'))}",
            "[paths]",
            f"models = {json.dumps([str(folder / 'models')])}",
            f"presets = {json.dumps(str(folder / 'presets.d'))}",
            f"state = {json.dumps(str(folder / 'state'))}",
            f"cache = {json.dumps(str(folder / 'cache'))}",
            "[models]",
            'ttl = "never"',
            f"max_loaded = {0 if len(setup.models) == 1 else 1}",
            "[defaults.load]",
            f"context_length = {setup.n_ctx}",
            f"parallel = {setup.parallel}",
            f"threads = {setup.threads}",
            "",
        ]
    )


@asynccontextmanager
async def lmd(
    setup: Setup,
    arguments: Sequence[str] = (),
    log: Path | None = None,
    command: Sequence[str] = (sys.executable, "-m", "lmd"),
) -> AsyncIterator[Server]:
    """Run lmd as long as the context lasts. No model is loaded yet: the first request of each loads it.

    ``arguments``: more of its command line. ``log``: where its output goes, to be read afterwards.
    """
    with TemporaryDirectory(prefix="lmd-bench-") as name:
        folder = Path(name)
        for part in ("models", "presets.d", "state", "cache"):
            (folder / part).mkdir()
        for path in setup.models:
            (folder / "models" / path.name).symlink_to(path)
        config, log = folder / "lmd.toml", log or folder / "log"
        config.write_text(configuration(folder, setup))
        async with process([*command, "--config", config, *arguments], log) as child:
            url = await ready_url(child, log)
            await until_healthy(child, url, log)
            names = names_of(setup.models, await served_models(url))
            yield Server(name="lmd", url=url, pid=child.pid, models=names)


async def ready_url(child: asyncio.subprocess.Process, log: Path) -> str:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        if line := _READY.search(log.read_text(errors="replace")):
            return line[1]
        if child.returncode is not None:
            raise ServerFailed(f"lmd ended with {child.returncode} before it was ready:\n{tail(log)}")
        await asyncio.sleep(0.02)
    raise ServerFailed(f"lmd told no ready line within {START_SECONDS:.0f} s:\n{tail(log)}")
