"""What lmd takes beside the model is counted over all its processes."""

from pathlib import Path

import pytest

from tests.bench.memory import TARGET, Footprint, measure, report
from tests.bench.server import Setup

TINY = Path(__file__).parents[1] / "models" / "tiny-chat.gguf"
MIB = 2**20


async def test_every_process_of_lmd_is_counted_and_the_model_taken_off() -> None:
    found = await measure(Setup(models=(TINY,), threads=1, parallel=2, n_ctx=4096))
    # Processes with an interpreter each, not the mere difference of two large numbers.
    assert min(found.daemon, found.worker, found.standby) > 5 * MIB
    assert found.weights > MIB
    assert found.buffers > MIB
    assert found.total == found.daemon + found.worker + found.standby


@pytest.mark.parametrize(("more", "ends"), [(0, "≤ 150.0 MiB |"), (1, "≤ 150.0 MiB **missed** |")])
def test_the_table_tells_whether_the_target_is_reached(more: int, ends: str) -> None:
    third = TARGET // 3
    lines = report(Footprint(third + more, third, third, 5 * MIB, 7 * MIB), "a model").splitlines()
    assert lines[0].startswith("| memory (PSS) with a model")
    assert lines[-1].endswith(ends)
