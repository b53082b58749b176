import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmctl.text import count, counted, duration, one_line, printable, size


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "never"),
        (0, "0s"),
        (-3, "0s"),
        (59.9, "59s"),
        (250, "4m 10s"),
        (3600, "1h"),
        (3660.0, "1h 1m"),
        (200000, "2d 7h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (0, "-"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1772096, "1.69 MiB"),
        (44 * 2**20, "44.0 MiB"),
        (5 * 2**50, "5120 TiB"),
    ],
)
def test_sizes_have_three_digits(n: int, shown: str) -> None:
    assert size(n) == shown


@pytest.mark.parametrize(
    ("n", "shown"),
    [(0, "-"), (870_000, "870K"), (1_000_000, "1M"), (999_900, "1M"), (7_600_000_000, "7.6B"), (70_553_706_496, "71B")],
)
def test_parameters_are_counted_as_model_names_do(n: int, shown: str) -> None:
    assert count(n) == shown


@pytest.mark.parametrize(("n", "shown"), [(0, "0 files"), (1, "1 file"), (2, "2 files")])
def test_one_thing_is_told_in_the_singular(n: int, shown: str) -> None:
    assert counted(n, "file") == shown


@given(st.text())
def test_printable_text_has_no_escape_and_keeps_its_words(text: str) -> None:
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)
    assert [c for c in text if c.isalnum()] == [c for c in shown if c.isalnum()]


def test_one_line_is_one_line() -> None:
    assert one_line("\x1b]0;title\x07a\r\n  b\tc\n") == "]0;titlea b c"
