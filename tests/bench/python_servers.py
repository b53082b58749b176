"""llama-cpp-python's two servers, for the reader of the tables: ``llama_cpp.server`` and ``examples/server``.

Both run on the installed bindings, thus on the very llama.cpp that lmd binds. What they want beyond that (FastAPI and
the like) goes into a folder of its own in the cache, installed by pip on the first use. Neither tells how many
tokens it streamed, so that their tokens are counted by what was asked for (`tests.bench.stream`).
"""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import llama_source
from tests.bench.cache import cache_dir
from tests.bench.server import Server, Setup, free_port, names_of, process, served_models, until_healthy

PACKAGES = (
    "fastapi>=0.100",
    "uvicorn>=0.22",
    "sse-starlette>=1.6.1",
    "starlette-context>=0.3.6,<0.4",
    "pydantic-settings>=2.0.1",
    "PyYAML>=5.1",
    "openai",
)


class CannotRun(Exception):
    """A server cannot run here. Says why."""


def python() -> Sequence[str | Path]:
    """How to start this interpreter with what both servers import. CannotRun where pip cannot get it."""
    # Nothing in it points to the environment of the checkout that made it, which may be gone while the cache stays.
    folder = cache_dir() / f"python-servers-{sys.implementation.cache_tag}"
    if not folder.exists():
        # Installed beside its final place and renamed: two processes may do so, a cut-off one must not look whole.
        with TemporaryDirectory(dir=cache_dir(), prefix="install-") as temporary:
            target = Path(temporary, "packages")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", target, *PACKAGES]
            installing = subprocess.run(command, capture_output=True, text=True)
            if installing.returncode:
                raise CannotRun(f"pip could not install {', '.join(PACKAGES)}: {installing.stderr.strip()[-2000:]}")
            try:
                target.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return "env", f"PYTHONPATH={folder}", sys.executable


@asynccontextmanager
async def llama_cpp_server(setup: Setup) -> AsyncIterator[Server]:
    """``python -m llama_cpp.server``: one request at a time, the others wait for it."""
    port = free_port()
    command: Sequence[str | Path] = [
        *python(),
        *("-m", "llama_cpp.server", "--model", setup.models[0]),
        *("--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(setup.n_ctx)),
        *("--n_threads", str(setup.threads), "--n_threads_batch", str(setup.threads)),
        # Else every request that comes ends the one before it, and the logits of the whole context are kept.
        *("--interrupt_requests", "False", "--logits_all", "False"),
    ]
    async with _serving("llama-cpp-python", command, port, setup.models[0]) as server:
        yield server


@asynccontextmanager
async def example_server(setup: Setup) -> AsyncIterator[Server]:
    """``examples/server/server.py`` of the source distribution: continuous batching on the low-level bindings."""
    port = free_port()
    script = llama_source.source() / "examples/server/server.py"
    if not script.is_file():
        raise CannotRun(f"there is no {script}")
    with TemporaryDirectory(dir=cache_dir(), prefix="example-") as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps(_example_config(setup, port)))
        command: Sequence[str | Path] = [*python(), script, "--config-file", config]
        async with _serving("examples/server", command, port, setup.models[0]) as server:
            yield server


def _example_config(setup: Setup, port: int) -> dict[str, object]:
    model = {
        "path": str(setup.models[0]),
        "alias": setup.models[0].stem,
        "n_ctx": setup.n_ctx * setup.parallel,
        "n_seq_max": setup.parallel,
        "n_batch": 512,
        "n_ubatch": 512,
        "threads": setup.threads,
        "threads_batch": setup.threads,
        "kv_unified": True,
        "store_logits": False,
    }
    return {"server": {"host": "127.0.0.1", "port": port}, "model": model}


@asynccontextmanager
async def _serving(name: str, command: Sequence[str | Path], port: int, model: Path) -> AsyncIterator[Server]:
    url = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(prefix="lmd-bench-") as folder:
        log = Path(folder, "log")
        async with process(command, log) as child:
            await until_healthy(child, url, log, path="/v1/models")
            names = names_of([model], await served_models(url))
            yield Server(name=name, url=url, pid=child.pid, models=names, tells_usage=False)


if __name__ == "__main__":
    print(*python())
