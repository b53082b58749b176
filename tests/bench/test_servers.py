"""The servers that are compared really start, serve the tiny model under load, and leave nothing behind."""

import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.bench import compare, peer, python_servers, scenarios
from tests.bench.daemon import configuration, lmd
from tests.bench.llama_source import SourceMissing, vocabulary_file
from tests.bench.load import Load, run
from tests.bench.report import OURS, table
from tests.bench.scenarios import Figures, Row, Scenario
from tests.bench.server import Server, ServerFailed, Setup, names_of, process, until_healthy
from tests.bench.stream import RequestFailed, chat_body, new_connections, stream_chat
from tests.models.bert_model import BertShape, bert_weights, write_bert
from tests.models.gguf_model import Vocabulary

MODELS = Path(__file__).parents[1] / "models"
SETUP = Setup(models=(MODELS / "tiny-chat.gguf",), threads=1, parallel=2, n_ctx=512)
SMALL = Load(clients=2, prompt_tokens=60, max_tokens=6, turns=2)


def in_group(pid: int) -> list[psutil.Process]:
    """Every process that ``pid`` started, itself included; empty once all have ended."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


async def test_lmd_serves_under_load_and_ends_with_all_its_workers() -> None:
    async with lmd(SETUP) as server:
        result = await run(server.url, server.model, SMALL)
        started = in_group(server.pid)
    assert (result.requests, result.completion_tokens) == (4, 24)
    assert len(started) > 1
    assert psutil.wait_procs(started, timeout=5)[1] == []


async def test_lmd_keeps_one_of_several_models_and_serves_each() -> None:
    setup = Setup(models=(MODELS / "tiny-chat.gguf", MODELS / "tiny-draft.gguf"), threads=1, parallel=2, n_ctx=512)
    async with lmd(setup) as server, new_connections() as session:
        for model in (*server.models, *server.models):
            body = chat_body(model, [{"role": "user", "content": "Hello"}], 4)
            assert (await stream_chat(session, server.url, body)).completion_tokens == 4


def test_lmd_is_configured_as_the_setup_says(tmp_path: Path) -> None:
    one = tomllib.loads(configuration(tmp_path, SETUP))
    assert one["defaults"]["load"] == {"context_length": 512, "parallel": 2, "threads": 1}
    assert one["models"]["max_loaded"] == 0
    two = tomllib.loads(configuration(tmp_path, Setup(models=(Path("a.gguf"), Path("b.gguf")))))
    assert two["models"]["max_loaded"] == 1


async def test_llama_server_serves_under_load_and_ends() -> None:
    if peer.find() is None:
        pytest.skip("llama-server is not built: python -m tests.bench.peer build takes minutes")
    async with peer.llama_server(SETUP) as server:
        result = await run(server.url, server.model, SMALL)
        started = in_group(server.pid)
    assert (result.requests, result.completion_tokens) == (4, 24)
    assert psutil.wait_procs(started, timeout=5)[1] == []


async def test_a_prompt_is_given_up_in_the_middle_and_another_takes_its_place() -> None:
    setup = Setup(models=SETUP.models, threads=1, parallel=1, n_ctx=4096)
    async with lmd(setup) as server:
        figures = await scenarios.cancelled_prompt(server, "seed", n_long=900)
    assert figures.keys() == {"wait", "steps"}
    assert min(figures.values()) >= 0


@pytest.mark.parametrize("launch", sorted(compare.FOR_THE_READER.values(), key=str))
async def test_a_server_that_tells_no_usage_is_measured_all_the_same(launch: compare.Launch) -> None:
    try:
        async with launch(SETUP) as server:
            result = await run(server.url, server.model, replace(SMALL, tells_usage=server.tells_usage))
            started = in_group(server.pid)
    except (python_servers.CannotRun, SourceMissing) as exc:
        pytest.skip(str(exc))
    assert result.requests == 4
    assert 4 <= result.completion_tokens <= 24  # they know no ignore_eos
    assert psutil.wait_procs(started, timeout=5)[1] == []


@pytest.mark.parametrize("launch", [lmd, peer.llama_server])
async def test_both_servers_embed_texts_of_exactly_so_many_tokens(launch: compare.Launch, tmp_path: Path) -> None:
    if launch is peer.llama_server and peer.find() is None:
        pytest.skip("llama-server is not built: python -m tests.bench.peer build takes minutes")
    try:
        vocabulary = Vocabulary.from_gguf(vocabulary_file("bert-bge"))
    except SourceMissing as exc:
        pytest.skip(str(exc))
    shape = BertShape(n_ctx_train=512)
    model = write_bert(tmp_path / "small-bert.gguf", bert_weights(shape, vocabulary.n_tokens), vocabulary, shape)
    async with launch(Setup(models=(model,), threads=1, n_ctx=512, embeds=True)) as server:
        figures = await scenarios.embeddings(server, "seed")
    assert min(figures.values()) > 0


async def test_rounds_alternate_and_end_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def measure(server: Server, seed: str) -> Figures:
        asked.append(f"{server.pid} {seed}")
        return {"speed": (await run(server.url, server.model, SMALL)).tokens_per_second}

    row = Row(figure="speed", title="speed", unit="tokens/s", target=0.01)
    scenario = Scenario(name="s", title="tiny", rows=(row,), measure=measure)
    # Both sides are lmd: what is tested is the order, and that each round gets a fresh server.
    found = await compare.compare(scenario, SETUP, 2, {"llama-server": lmd, OURS: lmd})
    assert [entry.split()[1] for entry in asked] == ["s/0", "s/0", "s/1", "s/1"]
    assert len({entry.split()[0] for entry in asked}) == 4
    assert all(figures["speed"] > 0 for rounds in found.rounds.values() for figures in rounds)
    assert "| speed |" in table(found)


async def test_a_server_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with process(["sh", "-c", "echo no such model; exit 3"], log) as child:
        with pytest.raises(ServerFailed, match=r"ended with 3[\s\S]*no such model"):
            await until_healthy(child, "http://127.0.0.1:9", log)


async def test_a_request_that_fails_is_told_with_the_servers_log(tmp_path: Path) -> None:
    with pytest.raises(RequestFailed, match=r"500[\s\S]*what went wrong"):
        async with process(["sh", "-c", "echo what went wrong"], tmp_path / "log") as child:
            await child.wait()
            raise RequestFailed("500")


async def test_a_server_that_ignores_the_request_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.bench.server.STOP_SECONDS", 0.1)
    log = tmp_path / "log"
    async with process(["sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.05; done"], log) as child:
        while "up" not in log.read_text():
            assert child.returncode is None
    assert child.returncode == -9


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9), (signal.SIGINT, -2)])
def test_a_server_ends_with_the_benchmark_however_that_ends(ending: signal.Signals, code: int, tmp_path: Path) -> None:
    program = f"""
import asyncio
from pathlib import Path
from tests.bench.server import process, run_until_signalled
async def bench():
    async with process(["sleep", "1000"], Path({str(tmp_path / "log")!r})) as child:
        print(child.pid, flush=True)
        await asyncio.Event().wait()
run_until_signalled(bench())
"""
    root = Path(__file__).parents[2]
    bench = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert bench.stdout is not None
    server = psutil.Process(int(bench.stdout.readline()))
    bench.send_signal(ending)
    assert bench.wait(10) == code
    bench.stdout.close()
    assert psutil.wait_procs([server], timeout=5)[1] == []


def test_names_are_found_by_the_files_stem_and_ambiguity_is_an_error() -> None:
    files = (Path("/m/a-1.gguf"), Path("/m/b.gguf"))
    assert names_of(files, ["x/b", "a-1"]) == ("a-1", "x/b")
    with pytest.raises(ServerFailed, match=r"b\.gguf should be served under one name"):
        names_of(files, ["a-1", "b", "b2"])


def test_a_peer_cannot_be_built_without_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMD_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(peer.BuildFailed, match="apt install cmake ninja-build"):
        peer.build()


def test_an_unknown_scenario_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["nonsense"])
    assert ", ".join(scenarios.SCENARIOS) in capsys.readouterr().err
