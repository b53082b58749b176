"""lmd and llama-server up at the same time and asked in turn: the machine's drift strikes both alike.

    python -m tests.bench.pairs --starts 5 --bursts 4 --clients 8 --max-tokens 4

A line for each start of the two: medians of lmd's figure over llama-server's. Who is not asked is idle.
"""

import argparse
import asyncio
import statistics
from dataclasses import replace
from typing import get_args

from tests.bench import peer
from tests.bench.daemon import lmd
from tests.bench.load import Load, Result, run
from tests.bench.scenarios import ratio
from tests.bench.server import Setup, run_until_signalled
from tests.models.gguf_model import QuantName
from tests.models.random_model import NAMED, cached

FIGURES = ("seconds", "ttft_p50", "ttft_max")


async def burst_pairs(setup: Setup, load: Load, bursts: int) -> dict[str, float]:
    """Start both, and put ``load`` on each ``bursts`` times, every other time the other one first."""
    results: dict[str, list[Result]] = {}
    async with lmd(setup) as ours, peer.llama_server(setup) as theirs:
        for number in range(bursts):
            for server in (ours, theirs) if number % 2 else (theirs, ours):
                seeded = replace(load, seed=f"{load.seed}/{number}/{server.name}")
                results.setdefault(server.name, []).append(await run(server.url, server.model, seeded))
    pairs = list(zip(results[theirs.name], results[ours.name], strict=True))
    return {
        figure: statistics.median(ratio(getattr(peers, figure), getattr(own, figure)) for peers, own in pairs)
        for figure in FIGURES
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pairs", description="Ratios to llama-server, in turn.")
    parser.add_argument("--quantization", choices=get_args(QuantName), default="Q8_0")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--bursts", type=int, default=4)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    run_until_signalled(_all(parser.parse_args()))


async def _all(given: argparse.Namespace) -> None:
    await asyncio.to_thread(peer.build)
    setup = Setup(models=(cached(replace(NAMED["qwen2-0.5b"], quantization=given.quantization)),))
    for start in range(given.starts):
        load = Load(clients=given.clients, max_tokens=given.max_tokens, turns=1, seed=str(start))
        ratios = await burst_pairs(setup, load, given.bursts)
        print(f"start {start}: {', '.join(f'{name} {value:.2f}' for name, value in ratios.items())}", flush=True)


if __name__ == "__main__":
    main()
