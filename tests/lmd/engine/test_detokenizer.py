from hypothesis import example, given
from hypothesis import strategies as st

from lmd.engine.detokenizer import Detokenizer, StopStrings


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({c % (len(data) + 1) for c in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def first_complete(text: str, stops: list[str]) -> tuple[str, str | None]:
    """What `StopStrings` promises, looked for one end after the other."""
    for end in range(1, len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return text[:start], text[start:end]
    return text, None


@given(st.binary(max_size=40), st.lists(st.integers(0, 100), max_size=8))
@example("é日本🙂".encode(), [1, 3, 4, 6, 9, 10, 11])
def test_any_split_of_any_bytes_gives_the_same_text(data: bytes, cuts: list[int]) -> None:
    detokenizer = Detokenizer()
    text = "".join(detokenizer.feed(piece) for piece in cut(data, cuts)) + detokenizer.flush()
    assert text == data.decode("utf-8", "replace")


def test_half_a_character_is_held_back() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.feed("é".encode()[:1]) == ""
    assert detokenizer.feed("é".encode()[1:] + b"!") == "é!"


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    st.lists(st.text("abc", max_size=5), max_size=8),
)
@example(["a", "baa"], ["b", "a"])
def test_the_first_stop_string_to_be_complete_ends_the_text_however_it_is_split(
    stops: list[str], pieces: list[str]
) -> None:
    finder = StopStrings(stops)
    text = "".join(finder.feed(piece) for piece in pieces)
    if finder.found is None:
        text += finder.flush()
    assert (text, finder.found) == first_complete("".join(pieces), stops)


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    finder = StopStrings(["\n\nUser:"])
    assert finder.feed("Hello\n") == "Hello"
    assert finder.feed("there") == "\nthere"
    assert finder.feed("\n\nUs") == ""
    assert finder.flush() == "\n\nUs"


def test_nothing_follows_a_stop_string() -> None:
    finder = StopStrings(["END"])
    assert finder.feed("one END two") == "one "
    assert finder.feed("three") == ""
    assert finder.flush() == ""
    assert finder.found == "END"
