import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmctl.streams import LineDecoder, ServerEvent, SseDecoder

SSE = (
    ": loading\r\n\r\n"
    'data: {"a": "é→😀"}\n\n'
    "event: error\ndata: one\ndata:two\ndata:  three\nid: 7\nretry: 5\n\n"
    "event: nothing\n\n"
    "data\n\n"
    "data: [DONE]\n\n"
    "data: cut off"
).encode()
EVENTS = [
    ServerEvent(comment="loading"),
    ServerEvent('{"a": "é→😀"}'),
    ServerEvent("one\ntwo\n three", "error"),
    ServerEvent(""),
    ServerEvent("[DONE]"),
]


def decoded(pieces: list[bytes]) -> list[ServerEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.flush()


@pytest.mark.parametrize("at", range(len(SSE) + 1))
def test_events_survive_a_cut_at_every_byte(at: int) -> None:
    assert decoded([SSE[:at], SSE[at:]]) == EVENTS


def test_events_survive_one_byte_at_a_time() -> None:
    assert decoded([SSE[i : i + 1] for i in range(len(SSE))]) == EVENTS


@given(st.lists(st.binary()))
def test_any_bytes_in_any_pieces_are_the_same_events(pieces: list[bytes]) -> None:
    assert decoded(pieces) == decoded([b"".join(pieces)])


@given(st.lists(st.binary()))
def test_lines_do_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    decoder, whole = LineDecoder(), b"".join(pieces)
    lines = [line for piece in pieces for line in decoder.feed(piece)] + decoder.flush()
    expected = whole.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines == [line.removesuffix(b"\r") for line in expected]
