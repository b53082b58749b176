"""lmd against llama-server: the same model, the same prompts, in turn, on a machine with nothing else to do.

    python -m tests.bench.compare                                # throughput; prints the table
    python -m tests.bench.compare throughput model-swap --rounds 5 --write docs/benchmarks.md

The first run generates the model and builds the peer (minutes). Each round starts each server afresh; the servers
take turns (A B A B …), and the table shows medians over the rounds.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from tests.bench import daemon, llama_source, peer, python_servers
from tests.bench.machine import busy, machine, versions
from tests.bench.report import OURS, PEERS, Comparison, put_block, spread, table
from tests.bench.scenarios import SCENARIOS, Figures, Scenario
from tests.bench.server import Server, ServerFailed, Setup, run_until_signalled
from tests.bench.stream import RequestFailed
from tests.models.bert_model import minilm
from tests.models.gguf_model import QuantName
from tests.models.random_model import NAMED, RandomModel, cached

Launch = Callable[[Setup], AbstractAsyncContextManager[Server]]
LAUNCHERS: dict[str, Launch] = {PEERS: peer.llama_server, OURS: daemon.lmd}
FOR_THE_READER: dict[str, Launch] = {
    "llama_cpp.server": python_servers.llama_cpp_server,
    "examples/server": python_servers.example_server,
}
"""llama-cpp-python's own servers: columns without a target."""


async def compare(scenario: Scenario, setup: Setup, rounds: int, launchers: dict[str, Launch]) -> Comparison:
    """Run ``scenario`` ``rounds`` times on each server, in turn, but for what one for the reader fails."""
    measured: dict[str, list[Figures]] = {name: [] for name in launchers}
    for number in range(rounds):
        for name, launch in launchers.items():
            started = time.perf_counter()
            try:
                async with launch(setup) as server:
                    measured[name].append(await scenario.measure(server, f"{scenario.name}/{number}"))
            except (RequestFailed, ServerFailed) as exc:
                if name not in FOR_THE_READER:
                    raise
                tell(f"left out: round {number + 1} of {name}: {str(exc).splitlines()[0]}")
                continue
            tell(f"{scenario.name}, round {number + 1} of {rounds}, {name}: {time.perf_counter() - started:.0f} s")
    return Comparison(scenario, {name: figures for name, figures in measured.items() if figures})


def setup_for(scenario: Scenario, model: RandomModel, threads: int) -> Setup:
    """Where ``scenario`` wants several models: the same shape with other weights."""
    if scenario.embeds:
        models: tuple[Path, ...] = (minilm(model.quantization),)
    else:
        models = tuple(cached(replace(model, seed=model.seed + number)) for number in range(scenario.n_models))
    return Setup(
        models=models, threads=threads, parallel=scenario.parallel, n_ctx=scenario.n_ctx, embeds=scenario.embeds
    )


def model_name(scenario: Scenario, model: RandomModel) -> str:
    return f"{'minilm' if scenario.embeds else model.name} {model.quantization}"


def described(comparison: Comparison, model: str, setup: Setup, rounds: int) -> str:
    """The table and all that is needed to make it again."""
    fewer = "".join(
        f" ({len(figures)} of {name})" for name, figures in comparison.rounds.items() if len(figures) < rounds
    )
    return "\n\n".join(
        [
            table(comparison),
            f"{datetime.now(UTC):%Y-%m-%d}, {model}, random weights, {setup.threads} threads,"
            f" {setup.parallel} sequences of {setup.n_ctx} tokens, medians of {rounds}{fewer};"
            f" {machine()}; {versions()}.",
            f"Lowest–highest, {PEERS} against {OURS}: {spread(comparison)}.",
        ]
    )


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description="Compare lmd with llama-server.")
    parser.add_argument("scenarios", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: throughput")
    parser.add_argument("--model", choices=sorted(NAMED), default="qwen2-0.5b")
    parser.add_argument("--quantization", choices=get_args(QuantName), default="Q8_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--also", choices=sorted(FOR_THE_READER), action="append", default=[], help="a further column")
    parser.add_argument("--only", choices=sorted(LAUNCHERS), help="run one server and print its figures as JSON")
    parser.add_argument("--write", type=Path, help="put the tables into this Markdown file")
    parser.add_argument("--json", type=Path, help="put the figures of every round into this file")
    given = parser.parse_args(argv)
    names = given.scenarios or ["throughput"]
    if unknown := [name for name in names if name not in SCENARIOS]:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    try:
        run_until_signalled(_compare_all([SCENARIOS[name] for name in names], given))
    except (
        RequestFailed,
        ServerFailed,
        peer.BuildFailed,
        llama_source.SourceMissing,
        python_servers.CannotRun,
    ) as exc:
        raise SystemExit(f"compare: {exc}") from exc


async def _compare_all(scenarios: Sequence[Scenario], given: argparse.Namespace) -> None:
    model = replace(NAMED[given.model], quantization=given.quantization)
    launchers = {given.only: LAUNCHERS[given.only]} if given.only else LAUNCHERS
    further = {name: FOR_THE_READER[name] for name in given.also}
    if further:
        try:
            await asyncio.to_thread(python_servers.python)
        except (python_servers.CannotRun, llama_source.SourceMissing) as exc:
            tell(f"left out: {', '.join(further)}: {exc}")
            further = {}
    if PEERS in launchers and peer.find() is None:
        tell("building llama-server, once: 6–9 minutes on two cores")
        peer.build()
    figures = {}
    for scenario in scenarios:
        setup = setup_for(scenario, model, given.threads)
        if (load := busy()) > 0.5:
            tell(f"the machine is not idle (load average {load:.1f}): the figures will be of little worth")
        if further and not scenario.any_server:
            tell(f"{scenario.name} is nothing for servers that tell no usage: without {', '.join(further)}")
        all_ = {**launchers, **further} if scenario.any_server else launchers
        comparison = await compare(scenario, setup, given.rounds, all_)
        figures[scenario.name] = comparison.rounds
        if given.only:
            continue
        text = described(comparison, model_name(scenario, model), setup, given.rounds)
        print(f"{text}\n")
        if given.write:
            name = f"{scenario.name} {model_name(scenario, model)}"
            given.write.write_text(put_block(given.write.read_text(), name, text))
    if given.only:
        print(json.dumps(figures, indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
