import logging

import pytest

from lmd.worker.output import KEPT_LINES, MAX_LINE, LineReader


@pytest.fixture
async def lines():
    return []


@pytest.fixture
async def reader(lines):
    return LineReader(lambda level, text: lines.append((level, text)))


async def test_every_split_gives_the_same_lines(lines, reader):
    text = "eins\nzwei Ä\r\n\n<3>drei\nvier".encode()
    whole = [(logging.INFO, "eins"), (logging.INFO, "zwei Ä"), (logging.ERROR, "drei"), (logging.INFO, "vier")]
    for at in range(len(text) + 1):
        lines.clear()
        reader.data_received(text[:at])
        reader.data_received(text[at:])
        reader.connection_lost(None)
        assert lines == whole


async def test_the_tail_keeps_the_last_lines_but_none_for_debugging(lines, reader):
    for n in range(100):
        reader.data_received(f"<6>line {n}\n<7>noise {n}\n".encode())
    assert list(reader.tail) == [f"line {n}" for n in range(100 - KEPT_LINES, 100)]
    assert (logging.DEBUG, "noise 99") in lines


async def test_a_line_without_end_takes_no_memory(lines, reader):
    for _ in range(100):
        reader.data_received(b"x" * 1000)
    assert len(reader._rest) <= MAX_LINE
    assert all(len(text) <= MAX_LINE for _, text in lines)
