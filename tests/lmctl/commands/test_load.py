import asyncio
import json

import pytest

from lmd.protocol import Done, Estimate, Failure, InstanceRow, Progress
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.fake_daemon import TINY, FakeDaemon
from tests.lmctl.terminal import terminal


@pytest.mark.parametrize(
    ("args", "body"),
    [
        ((), {}),
        (("--ttl", "never"), {}),
        (("--ttl", "300"), {"ttl": 300.0}),
        (("--ttl", "5m"), {"ttl": 300.0}),
        (("--ttl=1h30m",), {"ttl": 5400.0}),
        (("--context-length", "4096", "--parallel", "2"), {"load": {"context_length": 4096, "parallel": 2}}),
        (("--identifier", "mine"), {"identifier": "mine"}),
        (("--gpu", "auto"), {"load": {"gpu_layers": "auto"}}),
        (("--gpu", "off"), {"load": {"gpu_layers": 0}}),
        (("--gpu", "12"), {"load": {"gpu_layers": 12}}),
        (("--reload",), {"reload": True}),
        (
            ("--set", "kv_cache_type=q8_0", "--set", "mmap=false", "--set", "rope_freq_base=1e4"),
            {"load": {"kv_cache_type": "q8_0", "mmap": False, "rope_freq_base": 10000.0}},
        ),
    ],
)
async def test_every_option_reaches_the_daemon(
    daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...], body: dict[str, object]
) -> None:
    ran = await lmctl("load", "tiny-chat", *args)
    assert ran.code == 0, ran.err
    assert daemon.requests == [("POST /load", {"model": "tiny-chat"} | body)]


async def test_the_result_is_one_line_and_progress_is_not_in_a_pipe(daemon: FakeDaemon, lmctl: Run) -> None:
    ran = await lmctl("load", "tiny-chat", "--ttl", "60")
    assert ran.out == (
        "tiny-chat loaded in 0.4 s: 8192 tokens of context, 4 at once, 44.0 MiB, leaves after 1m without use\n"
    )
    assert ran.err == ""


async def test_a_model_that_is_there_already_says_so(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.load_events = [Done(instance=TINY, already=True)]
    assert "was loaded already" in (await lmctl("load", "tiny-chat")).out


async def test_json_is_the_result_alone(daemon: FakeDaemon, lmctl: Run) -> None:
    told = json.loads((await lmctl("load", "tiny-chat", "--json")).out)
    assert (told["instance"]["id"], told["seconds"], told["instance"]["stale"]) == ("tiny-chat", 0.4, False)


async def test_a_failed_load_tells_why_after_the_progress(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.load_events = [Progress(0.2), Failure(code="load_failed", message="Out of memory.", hint="Load less.")]
    ran = await lmctl("load", "tiny-chat")
    assert (ran.code, ran.out, ran.err) == (1, "", "error: Out of memory.\nLoad less.\n")


async def test_a_load_that_ends_without_a_word_is_a_failure(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.load_events = [Progress(0.2)]
    ran = await lmctl("load", "tiny-chat")
    assert (ran.code, "without a result" in ran.err) == (1, True)


async def test_a_terminal_sees_progress_and_then_only_the_result(daemon: FakeDaemon) -> None:
    daemon.load_events = [Progress(0.37, "reading tensors")]
    daemon.hold = asyncio.Event()
    async with terminal(LMCTL, "load", "tiny-chat", env=environment(daemon.socket)) as screen:
        await screen.until("tiny-chat: reading tensors")
        await screen.until("37%")
        screen.type("\x03")
        assert await screen.end() == 130
    await daemon.gone.wait()


async def test_unload_names_what_left(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.instances = [TINY, InstanceRow(id="other", model="m", state="ready")]
    one = await lmctl("unload", "tiny-chat", "--force")
    every = await lmctl("unload", "--all")
    assert (one.out, every.out) == ("unloaded tiny-chat\n", "unloaded tiny-chat\nunloaded other\n")
    assert [body for _, body in daemon.requests] == [{"id": "tiny-chat", "force": True}, {"all": True}]


async def test_unload_all_of_nothing_is_done(daemon: FakeDaemon, lmctl: Run) -> None:
    ran = await lmctl("unload", "--all")
    assert (ran.code, ran.out) == (0, "")
    assert "No model was in memory" in ran.err


@pytest.mark.parametrize(
    ("estimate", "code", "verdict"),
    [
        (Estimate(10, 20, 30, 0, 60, 50, 100, 200), 0, "verdict: fits\n"),
        (Estimate(10, 20, 30, 5, 160, 50, 100, 200), 0, "verdict: fits once other models have left\n"),
        (Estimate(10, 20, 30, 0, 260, 50, 100, 200), 0, "verdict: fits with a smaller KV cache, from 50 B on\n"),
        (Estimate(10, 20, 30, 0, 260, 250, 100, 200), 1, "does not fit: 250 B is the least, 200 B is all there is\n"),
    ],
)
async def test_an_estimate_tells_whether_it_fits_and_loads_nothing(
    daemon: FakeDaemon, lmctl: Run, estimate: Estimate, code: int, verdict: str
) -> None:
    daemon.estimate = estimate
    ran = await lmctl("load", "tiny-chat", "--parallel", "2", "--estimate-only")
    assert (ran.code, ran.out.endswith(verdict)) == (code, True), ran.out
    assert ("draft model: 5 B" in ran.out) is bool(estimate.draft)
    assert daemon.requests == [("POST /load", {"model": "tiny-chat", "load": {"parallel": 2}, "estimate_only": True})]
