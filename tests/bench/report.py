"""Measured figures as Markdown, and their place in a document. Pure: no clock, no files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.scenarios import Figures, Row, Scenario, ratio

OURS, PEERS = "lmd", "llama-server"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The figures of every round of one scenario, by server, in the order of the rounds."""

    scenario: Scenario
    rounds: Mapping[str, Sequence[Figures]]

    def medians(self, row: Row) -> tuple[float, float]:
        """The peer's median and ours."""
        theirs, ours = ([figures[row.figure] for figures in self.rounds[server]] for server in (PEERS, OURS))
        return median(theirs), median(ours)


def table(comparison: Comparison) -> str:
    """One line for each row: the peer's median, ours, the ratio, the target, and whether it is reached.

    Further servers have a column each, for the reader.
    """
    others = [name for name in comparison.rounds if name not in {PEERS, OURS}]
    head = [comparison.scenario.title, PEERS, OURS, "ratio", "target", *others]
    lines = [f"| {' | '.join(head)} |", f"|---|---:|---:|---:|---|{'---:|' * len(others)}"]
    for row in comparison.scenario.rows:
        theirs, ours = comparison.medians(row)
        verdict = "" if row.reached(theirs, ours) else " **missed**"
        cells = [row.title, _cell(theirs, row), _cell(ours, row), f"{ratio(theirs, ours):.2f}", _target(row) + verdict]
        cells += [_cell(median(figures[row.figure] for figures in comparison.rounds[name]), row) for name in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _target(row: Row) -> str:
    if row.target is None:
        return "–"
    return f"{'≥' if row.is_speed else '≤'} {row.target:.2f}{' ' + row.unit if row.absolute else ''}"


def spread(comparison: Comparison) -> str:
    """Lowest and highest of each figure over the rounds: how far the medians can be trusted."""
    parts = []
    for row in comparison.scenario.rows:
        both = []
        for server in (PEERS, OURS):
            values = [figures[row.figure] for figures in comparison.rounds[server]]
            both.append(f"{_cell(min(values), row)}–{_cell(max(values), row)}")
        parts.append(f"{row.title} {both[0]} against {both[1]}")
    return "; ".join(parts)


def _cell(value: float, row: Row) -> str:
    if row.unit != "s":
        return f"{value:.1f} {row.unit}"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def put_block(document: str, name: str, body: str) -> str:
    """``document`` with the block ``name`` replaced by ``body``, or added at the end where it has none.

    A block stands between ``<!-- measured: NAME -->`` and ``<!-- end: NAME -->``, which stay.
    """
    begin, end = f"<!-- measured: {name} -->", f"<!-- end: {name} -->"
    block = f"{begin}\n{body.strip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(document):
        return pattern.sub(lambda _: block, document, count=1)
    return f"{document.rstrip()}\n\n{block}\n"
