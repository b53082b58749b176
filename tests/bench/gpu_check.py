"""Does lmd use this machine's GPU, rightly and well? Real workers, the tiny chat model and, for speed, a larger one.

    python -m tests.bench.gpu_check                       # checks; exit status 1 when one fails, 77 without a GPU
    python -m tests.bench.gpu_check --speed qwen2-0.5b    # and tokens/s on that random model (or a GGUF file)
    python -m tests.bench.gpu_check --remote 2            # no GPU: devices emulated by `tests.bench.remote_device`

What lmd says of VRAM is compared with nvidia-smi, where that is there. docs/gpu.md says what has been measured.
"""

import argparse
import asyncio
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmd.errors import InsufficientMemory
from lmd.generation import SamplingParams
from lmd.library.gguf import read_header
from lmd.loading import Device, LoadedModel, LoadParams, WorkerFacts
from lmd.pool.memory import device_memory, estimate
from lmd.worker.messages import Finished, Generate, Load, Output, PromptText, PromptTokens
from lmd.worker.process import COMMAND, WorkerProcess
from tests.bench import remote_device
from tests.bench.machine import machine, versions

TINY = Path(__file__).parents[1] / "models/tiny-chat.gguf"
MIB = 2**20
NO_GPU = 77
SMALL = LoadParams(context_length=512, parallel=4)
COUNT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20."
STREAMS = (1, 8, 32, 64)
_BACKEND_BYTES = 768 * MIB
"""What a backend may take in a worker beside llama.cpp's buffers once it computes (CUDA: kernels, work space)."""
_SETTLE_SECONDS = 10.0


CHECKS = (
    "devices_tell_their_memory",
    "all_layers_by_default_and_the_right_text",
    "none_and_some_layers_where_asked",
    "as_many_layers_as_a_limit_allows",
    "too_many_layers_are_refused",
    "vram_is_given_back",
    "two_instances_side_by_side",
    "the_pool_promises_enough",
)


class CheckFailed(Exception):
    """What was seen, and what should have been."""


def expect(condition: bool, seen: str) -> None:
    if not condition:
        raise CheckFailed(seen)


def vram_used() -> int | None:
    """Bytes of VRAM in use on all GPUs by anybody; None where nvidia-smi cannot tell."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode else sum(int(line) for line in done.stdout.split()) * MIB


def question(text: str) -> Generate:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return Generate(0, [PromptText(prompt)], SamplingParams(temperature=0.0, max_tokens=100))


async def answer(worker: WorkerProcess, request: Generate) -> tuple[str, int]:
    """The text and the number of tokens."""
    text, n_tokens = "", 0
    async for item in worker.generate(request):
        if isinstance(item, Output):
            text += item.text
        elif isinstance(item, Finished):
            text += item.text
            n_tokens = item.usage.completion_tokens
    return text, n_tokens


@dataclass(frozen=True)
class Checks:
    """All checks; each starts the workers that it needs. ``remote``: the devices are emulated.

    ``second``: starts a worker beside another one (an emulated device serves only one at a time).
    """

    command: Sequence[str]
    second: Sequence[str]
    devices: tuple[Device, ...]
    remote: bool

    @contextlib.asynccontextmanager
    async def worker(self, second: bool = False) -> AsyncIterator[WorkerProcess]:
        worker = await WorkerProcess.spawn(self.second if second else self.command)
        try:
            yield worker
        finally:
            await worker.stop(2.0)

    @contextlib.asynccontextmanager
    async def loaded(
        self, params: LoadParams = SMALL, path: Path = TINY, free_vram: int = 0, second: bool = False
    ) -> AsyncIterator[tuple[WorkerProcess, LoadedModel]]:
        async with self.worker(second) as worker:
            load = Load(path=str(path), params=params, free_vram=free_vram)
            yield worker, await worker.load(load, lambda fraction: None, 600.0)

    async def devices_tell_their_memory(self) -> str:
        for device in self.devices:
            expect(0 < device.memory_free <= device.memory_total, f"{device.name} tells {device}")
        expect(device_memory_of(self.devices) > 0, "nothing of it is usable")
        return ", ".join(f"{d.name}: {d.description}, {d.memory_free // MIB} MiB free" for d in self.devices)

    async def all_layers_by_default_and_the_right_text(self) -> str:
        async with self.loaded() as (worker, model):
            expect(model.gpu_layers == model.n_layers + 1, f"{model.gpu_layers} of {model.n_layers + 1} layers")
            least = model.model_bytes // 2 + model.kv_bytes
            expect(model.vram_bytes >= least, f"{model.vram_bytes} bytes of VRAM, expected {least} at least")
            text, _ = await answer(worker, question("Count to 20."))
            expect(text == COUNT, f"it says {text!r}")
            return f"{model.gpu_layers} layers, {model.vram_bytes / MIB:.1f} MiB"

    async def none_and_some_layers_where_asked(self) -> str:
        seen = []
        for n in (0, 1, 3):
            async with self.loaded(LoadParams(context_length=512, gpu_layers=n)) as (worker, model):
                expect(model.gpu_layers == n, f"{model.gpu_layers} layers where {n} were asked for")
                expect((model.vram_bytes > 0) == (n > 0), f"{model.vram_bytes} bytes of VRAM with {n} layers")
                text, _ = await answer(worker, question("Count to 20."))
                expect(text == COUNT, f"with {n} layers it says {text!r}")
                seen.append(f"{n}: {model.vram_bytes / MIB:.1f} MiB")
        return ", ".join(seen)

    async def as_many_layers_as_a_limit_allows(self) -> str:
        async with self.loaded() as (_, model):
            whole = model.vram_bytes
        seen = []
        for limit in (whole * 3 // 4, whole // 2, whole // 20):
            async with self.loaded(free_vram=limit) as (worker, model):
                expect(model.vram_bytes <= limit, f"{model.vram_bytes} bytes where {limit} were allowed")
                expect(model.gpu_layers <= model.n_layers, "all layers, where they cannot fit")
                text, _ = await answer(worker, question("Count to 20."))
                expect(text == COUNT, f"with {model.gpu_layers} layers it says {text!r}")
                seen.append(f"{limit / MIB:.1f} MiB: {model.gpu_layers} layers in {model.vram_bytes / MIB:.1f}")
        return ", ".join(seen)

    async def too_many_layers_are_refused(self) -> str:
        try:
            async with self.loaded(LoadParams(context_length=512, gpu_layers=99), free_vram=MIB // 2):
                raise CheckFailed("99 layers were loaded into half a MiB")
        except InsufficientMemory as exc:
            return exc.message

    async def vram_is_given_back(self) -> str:
        before = vram_used()
        if before is None or self.remote:
            return "not measured: nvidia-smi is not there"
        async with self.loaded(LoadParams(kv_cells=262144, context_length=8192)) as (worker, model):
            await answer(worker, question("Count to 20."))
            grown = (vram_used() or 0) - before
            expect(
                model.vram_bytes - 64 * MIB <= grown <= model.vram_bytes + _BACKEND_BYTES * len(self.devices),
                f"nvidia-smi: {grown // MIB} MiB more; lmd: {model.vram_bytes // MIB} MiB",
            )
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (vram_used() or 0) > before + 16 * MIB:
            expect(time.monotonic() < deadline, f"{(vram_used() or 0) - before} bytes more than before the load")
            await asyncio.sleep(0.1)
        return f"nvidia-smi {grown / MIB:.0f} MiB, lmd {model.vram_bytes / MIB:.0f} MiB; all given back"

    async def two_instances_side_by_side(self) -> str:
        async with self.loaded() as (one, _), self.loaded(second=True) as (other, _):
            texts = await asyncio.gather(*(answer(w, question("Count to 20.")) for w in (one, other) * 4))
        expect(all(text == COUNT for text, _ in texts), f"they say {texts}")
        return "8 answers at once"

    async def the_pool_promises_enough(self, path: Path = TINY) -> str:
        promised = estimate(read_header(path), SMALL, None, device_memory_of(self.devices)).full
        async with self.loaded(path=path) as (_, model):
            expect(promised.vram >= model.vram_bytes, f"{promised.vram} promised, {model.vram_bytes} taken")
            return f"{promised.vram / MIB:.0f} MiB promised, {model.vram_bytes / MIB:.0f} taken"

    async def speed(self, path: Path, n_tokens: int = 128) -> AsyncIterator[str]:
        """Tokens/s, all streams together; prompts of 16 tokens, temperature 0.8, top-p 0.95. The first is warm-up."""
        params = LoadParams(context_length=1024, parallel=max(STREAMS), kv_cells=1024 * max(STREAMS))
        sampling = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=n_tokens, seed=1)
        async with self.loaded(params, path) as (worker, model):
            took = f"{model.vram_bytes / MIB:.0f} MiB of VRAM, loaded in {model.load_seconds:.1f} s"
            yield f"{path.name}: {model.gpu_layers} layers, {took}"
            for n in (1, *STREAMS):
                requests = [
                    Generate(0, [PromptTokens([10 + i] * 16)], sampling, ignore_eos=True, cache_prompt=False)
                    for i in range(n)
                ]
                started = time.monotonic()
                answers = await asyncio.gather(*(answer(worker, request) for request in requests))
                seconds = time.monotonic() - started
                yield f"{n:3} streams: {sum(count for _, count in answers) / seconds:9.1f} tokens/s"


def device_memory_of(devices: tuple[Device, ...]) -> int:
    return device_memory(WorkerFacts(pid=0, llama_cpp_python="", llama_cpp="", system_info="", devices=devices))


async def find_devices(command: Sequence[str]) -> tuple[Device, ...]:
    """The GPUs that a worker's Hello lists."""
    worker = await WorkerProcess.spawn(command)
    await worker.stop(2.0)
    return tuple(device for device in worker.facts.devices if device.kind in ("gpu", "igpu"))


async def check(
    command: Sequence[str], second: Sequence[str] | None = None, *, remote: bool = False, speed: Path | None = None
) -> int:
    """Run everything and print a line for each. The exit status."""
    devices = await find_devices(command)
    if not devices:
        print(
            "There is no GPU that llama.cpp sees: none in the machine, no driver, or llama-cpp-python is built without"
            " its backend (docs/gpu.md says how to build it with one)."
        )
        return NO_GPU
    print(f"{machine()}\n{versions()}")
    checks = Checks(command, second or command, devices, remote)
    failed = 0
    for name in CHECKS:
        try:
            seen = await getattr(checks, name)()
        except CheckFailed as exc:
            failed += 1
            print(f"FAILED {name.replace('_', ' ')}: {exc}")
        else:
            print(f"ok     {name.replace('_', ' ')}: {seen}")
    if speed is not None:
        async for line in checks.speed(speed):
            print(f"       {line}", flush=True)
    return 1 if failed else 0


def _model(name: str) -> Path:
    if name.endswith(".gguf"):
        return Path(name)
    from tests.models.random_model import NAMED, cached

    return cached(NAMED[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--speed", metavar="MODEL", help="a name of tests.models.random_model, or a GGUF file")
    parser.add_argument("--remote", type=int, metavar="N", help="emulate N devices on the CPU")
    options = parser.parse_args()
    speed = _model(options.speed) if options.speed else None
    if not options.remote:
        return asyncio.run(check(COMMAND, speed=speed))
    try:
        with remote_device.devices(2 * options.remote) as ports:
            halves = ports[: options.remote], ports[options.remote :]
            return asyncio.run(check(*map(remote_device.worker_command, halves), remote=True, speed=speed))
    except remote_device.Unavailable as exc:
        print(exc)
        return NO_GPU


if __name__ == "__main__":
    sys.exit(main())
