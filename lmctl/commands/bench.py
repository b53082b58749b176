"""``lmctl bench``: a model's speed at several numbers of streams."""

from collections.abc import Sequence

from lmctl.bench import Run, measure, prompts, warm_up
from lmctl.client import Client
from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_table
from lmctl.wait import waiting
from lmd.protocol import InstanceRow

COLUMNS = (
    Column("STREAMS", align="right"),
    Column("PROMPT TOK/S", align="right"),
    Column("DECODE TOK/S", align="right"),
    Column("EACH", keep=3, align="right"),
    Column("TTFT", align="right"),
    Column("TTFT MAX", keep=2, align="right"),
    Column("SECONDS", keep=1, align="right"),
)


def bench_model(common: Common, model: str, *, streams: Sequence[int], prompt_tokens: int, max_tokens: int) -> None:
    client = common.client()
    runs = []
    with waiting(model) as wait:
        warm_up(client, model, wait.say)
        asked = prompts(client, model, prompt_tokens, sum(streams))
        for n in streams:
            wait.say(f"{n} streams of {prompt_tokens} tokens in, {max_tokens} out" if n > 1 else "one stream")
            mine, asked = asked[:n], asked[n:]  # no prompt is asked twice
            runs.append(measure(client, model, mine, max_tokens))
    if common.json:
        print_json({"model": model, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens, "runs": runs})
        return
    print_table(COLUMNS, [cells(run) for run in runs])
    note(f"{prompt_tokens} tokens in and {max_tokens} out for each stream, nothing cached. TTFT: time to first token.")
    if (parallel := _parallel(client, model)) and parallel < max(streams):
        note(f"{model} computes {parallel} sequences at once; further streams waited. 'lmctl load --parallel' sets it.")


def cells(run: Run) -> list[str]:
    return [
        str(run.streams),
        # An answer that came in one piece has no speed.
        *(f"{rate:.1f}" if rate else "-" for rate in (run.prompt_tps, run.decode_tps, run.stream_tps)),
        f"{run.ttft_mean:.3f} s",
        f"{run.ttft_max:.3f} s",
        f"{run.seconds:.2f}",
    ]


def _parallel(client: Client, model: str) -> int:
    """Sequences that the model's instance computes at once; 0 where it cannot be told which instance that is."""
    rows = [row for row in client.get("/instances", list[InstanceRow]) if model in (row.id, row.model)]
    return rows[0].parallel if len(rows) == 1 else 0
