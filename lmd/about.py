"""``lmd --version``: what is installed here, and what of this machine llama.cpp can use."""

import asyncio
import json
import logging
import platform
import re
import sys

from lmd.errors import LmdError
from lmd.loading import WorkerFacts
from lmd.version import VERSION

_FEATURE = re.compile(r"(\S+) = (\d+)")


def tell(*, as_json: bool) -> int:
    """Print it: lmd's own version at once, the rest when a worker has started. 1 where none can start."""
    # A worker that cannot start tells the log why, and the error says the same.
    logging.getLogger("lmd").addHandler(logging.NullHandler())
    if not as_json:
        print(f"lmd {VERSION}", flush=True)
    try:
        facts = asyncio.run(_facts())
    except LmdError as error:
        if as_json:
            print(json.dumps({"lmd": VERSION, "error": error.message}))
        print(f"lmd: {error}", file=sys.stderr)
        return 1
    print(json.dumps(described(facts), indent=2) if as_json else "\n".join(lines(facts)))
    return 0


async def _facts() -> WorkerFacts:
    """As a worker tells them: the daemon's process never loads llama.cpp. Raises LoadFailed."""
    from lmd.worker.process import WorkerProcess

    worker = await WorkerProcess.spawn()
    await worker.stop(0)
    return worker.facts


def described(facts: WorkerFacts) -> dict[str, object]:
    """Sizes in bytes."""
    return {
        "lmd": VERSION,
        "python": platform.python_version(),
        "llama_cpp_python": facts.llama_cpp_python,
        "llama_cpp": facts.llama_cpp,
        "features": features(facts.system_info),
        "devices": [
            {"name": one.name, "description": one.description, "kind": one.kind, "memory": one.memory_total}
            for one in facts.devices
        ],
    }


def lines(facts: WorkerFacts) -> list[str]:
    """What follows on lmd's own version."""
    told = [f"llama-cpp-python {facts.llama_cpp_python}, llama.cpp {facts.llama_cpp}"]
    told += [f"{backend}: {' '.join(found)}" for backend, found in features(facts.system_info).items()]
    told += [
        f"device {one.name} ({one.kind}): {one.description}, {one.memory_total / 2**30:.1f} GiB"
        for one in facts.devices
    ]
    return told


def features(system_info: str) -> dict[str, list[str]]:
    """What each of llama.cpp's backends was built with and found, by the backend's name.

    The text is llama.cpp's: ``CPU : SSE3 = 1 | AVX2 = 1 | CUDA : ARCHS = 900 | …``; 0 is no.
    """
    found: dict[str, list[str]] = {}
    backend = ""
    for part in system_info.split(" | "):
        name, colon, rest = part.partition(" : ")
        if colon:
            backend = name.strip()
        match = _FEATURE.fullmatch((rest if colon else part).strip())
        if backend and match:
            value = match[2]
            known = found.setdefault(backend, [])
            if value != "0":
                known.append(match[1] if value == "1" else f"{match[1]}={value}")
    return found
