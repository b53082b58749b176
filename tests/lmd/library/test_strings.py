import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.library.strings import forget, proven_strings


def walk(data: bytes, count: int) -> list[int]:
    """Where each string begins, found singly, as far as ``data`` goes."""
    starts = [0]
    while len(starts) <= count and starts[-1] + 8 <= len(data):
        end = starts[-1] + 8 + struct.unpack_from("<Q", data, starts[-1])[0]
        if end > len(data):
            break
        starts.append(end)
    return starts


def chain(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(one)) + one for one in strings)


words = st.lists(st.binary(max_size=12) | st.text(max_size=8).map(str.encode) | st.binary(min_size=250, max_size=300))


@given(strings=words, tail=st.binary(max_size=40), limit=st.integers(0, 60))
def test_what_is_proven_is_what_a_walk_finds(strings: list[bytes], tail: bytes, limit: int) -> None:
    data = chain(strings) + tail
    count, end = proven_strings(data, limit)
    starts = walk(data, limit)
    assert count <= limit
    assert count < len(starts)
    assert starts[count] == end


@given(data=st.lists(st.sampled_from([b"\0" * 7, b"\0", b"\1", b"\2", b"\3abc", b"ab"])).map(b"".join))
def test_no_arrangement_of_zeros_is_taken_for_strings_that_a_walk_does_not_find(data: bytes) -> None:
    count, end = proven_strings(data, 1000)
    starts = walk(data, 1000)
    assert count < len(starts)
    assert starts[count] == end


def test_ordinary_text_is_proven_to_nearly_the_last_string() -> None:
    strings = [f"Ġtoken{n:x}".encode() for n in range(5000)]
    count, end = proven_strings(chain(strings), 5000)
    assert count >= 4995
    assert end == len(chain(strings[:count]))


def test_a_string_that_holds_a_whole_chain_of_its_own_is_not_entered() -> None:
    inner = chain([b"decoy"] * 50)
    strings = [b"a", b"b", inner, b"c"]
    count, end = proven_strings(chain(strings), 100)
    assert end in walk(chain(strings), 4)
    assert count <= 2


def test_a_length_of_which_only_the_low_byte_fits_is_not_believed() -> None:
    data = chain([b"abc"] * 3) + struct.pack("<Q", 3 | 1 << 56) + b"abc" + chain([b"abc"] * 3)
    assert proven_strings(data, 100)[0] <= 3


@pytest.mark.parametrize("change", [b"x", b"\0"])
def test_data_seen_before_with_a_change_in_it_is_proven_anew(change: bytes) -> None:
    forget()
    data = chain([b"same"] * 200)
    assert proven_strings(data, 100) == proven_strings(data, 100) == proven_strings(data, 100) == (100, 1200)
    other = data[:120] + change + data[121:]
    count, end = proven_strings(other, 100)
    assert count <= 10
    assert end == 12 * count
