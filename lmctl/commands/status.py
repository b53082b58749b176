"""``lmctl status``."""

import time

from lmctl.options import Common
from lmctl.output import note, print_facts, print_json, print_problems
from lmctl.text import counted, duration, size
from lmd.protocol import Status


def show_status(common: Common) -> None:
    status = common.client().get("/status", Status)
    if common.json:
        print_json(status)
        return
    print_facts(facts(status, time.time()))
    if status.problems:
        print_problems(status.problems)
        note("The last good settings serve on. 'lmctl preset check' reads the files again.")


def facts(status: Status, now: float) -> list[tuple[str, str]]:
    used = size(status.memory_used) if status.memory_used else "none"
    memory = f"{used} used by models, {size(status.memory_free)} of {size(status.memory_total)} free"
    runtime = [
        f"{name} {version}"
        for name, key in (("llama-cpp-python", "llama_cpp_python"), ("llama.cpp", "llama_cpp"))
        if (version := status.runtime.get(key))
    ]
    told = [
        ("state", status.state),
        ("url", status.url),
        ("socket", status.socket),
        ("version", f"{status.version}, pid {status.pid}, up {duration(now - status.started_at)}"),
        ("config", status.config_file or "none, defaults apply"),
        ("models", f"{status.models} on disk, {counted(status.presets, 'preset')}, {status.instances} in memory"),
        ("requests", f"{status.active_requests} running, {status.requests_served} served"),
        ("memory", memory),
    ]
    if runtime:
        told.append(("runtime", ", ".join(runtime)))
        told.append(("GPUs", status.runtime.get("devices") or "none that llama.cpp sees"))
    return told
