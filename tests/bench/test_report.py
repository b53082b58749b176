"""Tables say the medians, the ratio, and whether the target is reached; blocks are replaced where they stand."""

import pytest

from tests.bench.report import OURS, PEERS, Comparison, put_block, spread, table
from tests.bench.scenarios import SCENARIOS, Row, Scenario, ratio
from tests.bench.server import Server


async def _nothing(server: Server, seed: str) -> dict[str, float]:
    return {}


SPEED = Row(figure="speed", title="aggregate", unit="tokens/s", target=0.95)
WAIT = Row(figure="wait", title="worst TTFT", unit="s", target=0.5)
SCENARIO = Scenario(name="s", title="some work", rows=(SPEED, WAIT), measure=_nothing)


def comparison(ours: list[float], waits: list[float]) -> Comparison:
    return Comparison(
        SCENARIO,
        {
            PEERS: [{"speed": 100.0, "wait": 2.0}, {"speed": 110.0, "wait": 2.0}, {"speed": 90.0, "wait": 8.0}],
            OURS: [{"speed": speed, "wait": wait} for speed, wait in zip(ours, waits, strict=True)],
        },
    )


def test_a_table_shows_medians_ratio_and_targets() -> None:
    assert table(comparison([80, 120, 300], [0.5, 0.25, 0.75])).splitlines() == [
        "| some work | llama-server | lmd | ratio | target |",
        "|---|---:|---:|---:|---|",
        "| aggregate | 100.0 tokens/s | 120.0 tokens/s | 1.20 | ≥ 0.95 |",
        "| worst TTFT | 2.00 s | 500 ms | 0.25 | ≤ 0.50 |",
    ]


def test_a_missed_target_is_told() -> None:
    lines = table(comparison([94, 94, 94], [1.1, 1.1, 1.1])).splitlines()
    assert lines[2].endswith("| 0.94 | ≥ 0.95 **missed** |")
    assert lines[3].endswith("| 0.55 | ≤ 0.50 **missed** |")


def test_a_figure_for_the_reader_has_no_target_to_miss() -> None:
    row = Row(figure="wait", title="longest wait", unit="s")
    assert row.reached(1.0, 99.0)


def test_an_absolute_target_is_for_our_own_figure() -> None:
    row = Row(figure="steps", title="longest wait", unit="steps", target=1.0, absolute=True)
    scenario = Scenario(name="s", title="some work", rows=(row,), measure=_nothing)
    told = [table(Comparison(scenario, {PEERS: [{"steps": 0.1}], OURS: [{"steps": ours}]})) for ours in (0.9, 1.1)]
    assert told[0].endswith("| 0.1 steps | 0.9 steps | 9.00 | ≤ 1.00 steps |")
    assert told[1].endswith("| ≤ 1.00 steps **missed** |")


def test_further_servers_have_columns_of_their_own() -> None:
    scenario = Scenario(name="s", title="some work", rows=(SPEED,), measure=_nothing)
    found = Comparison(scenario, {PEERS: [{"speed": 2.0}], OURS: [{"speed": 3.0}], "other": [{"speed": 1.0}]})
    assert table(found).splitlines() == [
        "| some work | llama-server | lmd | ratio | target | other |",
        "|---|---:|---:|---:|---|---:|",
        "| aggregate | 2.0 tokens/s | 3.0 tokens/s | 1.50 | ≥ 0.95 | 1.0 tokens/s |",
    ]


def test_the_spread_shows_lowest_and_highest_of_both() -> None:
    told = spread(comparison([80, 120, 300], [0.5, 0.25, 0.75]))
    assert "aggregate 90.0 tokens/s–110.0 tokens/s against 80.0 tokens/s–300.0 tokens/s" in told


def test_a_ratio_to_nothing_is_infinite() -> None:
    assert ratio(0.0, 1.0) == float("inf")


def test_a_block_is_added_then_replaced_and_nothing_else_changes() -> None:
    once = put_block("# Title\n\ntext\n", "a", "first")
    assert once == "# Title\n\ntext\n\n<!-- measured: a -->\nfirst\n<!-- end: a -->\n"
    both = put_block(once, "b", "other \\1")
    assert put_block(both, "a", "second") == both.replace("first", "second")
    assert put_block(put_block(both, "a", "second"), "a", "first") == both


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_scenarios_are_named_as_they_are_listed(name: str) -> None:
    scenario = SCENARIOS[name]
    assert scenario.name == name
    assert len({row.figure for row in scenario.rows}) == len(scenario.rows) > 0
