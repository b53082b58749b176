"""The daemon streams what a typist types, whole, and the bench says at which speed and cost."""

import os
from collections.abc import Callable

import pytest

from tests.bench import sse, typist
from tests.bench.sse import CASES, Figures, Stream, report
from tests.bench.stream import RequestFailed


async def test_streams_of_the_typist_arrive_whole_and_are_counted() -> None:
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        pytest.skip("the daemon wants a core to itself")
    figures = await sse.bench(3, 2000, 1)
    assert figures.keys() == CASES.keys()
    for (found,) in figures.values():
        assert found.tokens_per_second > 0
        assert 0 < found.events_per_token <= 1
    assert os.sched_getaffinity(0) == cpus


def answer(tokens: int, ending: bytes = b"data: [DONE]\n\n") -> bytes:
    pieces = (b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % typist.word(n).encode() for n in range(tokens))
    return b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(pieces) + ending


async def read(data: bytes, size: int) -> Stream:
    stream = Stream(b"")
    for at in range(0, len(data), size):
        stream.data_received(data[at : at + size])
    return stream


@pytest.mark.parametrize("size", [1, 7, 10**6])
async def test_events_are_counted_however_the_bytes_come(size: int) -> None:
    stream = await read(answer(30), size)
    assert stream.check(30) == 30


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (answer(30, b""), "broke off after 30 events"),
        (answer(29), "30 tokens were typed"),
        (b"HTTP/1.1 503 Busy\r\n\r\nno", "503"),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error(data: bytes, complaint: str) -> None:
    stream = await read(data, 64)
    with pytest.raises(RequestFailed, match=complaint):
        stream.check(30)


@pytest.mark.parametrize(("speed", "ends"), [(25_000, "≥ 25,000 |"), (24_999, "**missed** |")])
def test_the_table_tells_whether_the_target_is_reached(speed: float, ends: str) -> None:
    (_, _, line) = report({"chat": [Figures(speed, 30e-6, 1.0)]}, 32).splitlines()
    assert line.startswith("| chat |")
    assert "30.0 µs" in line
    assert line.endswith(ends)


def test_words_go_on_and_begin_with_a_space() -> None:
    found: Callable[[int], str] = typist.word
    assert typist.text_of(200) == "".join(map(found, range(200)))
    assert all(found(n).startswith(" ") for n in range(200))
