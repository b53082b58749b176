"""The pure parts of a transfer: patience and speed. Its life is tested with the downloads."""

from hypothesis import given
from hypothesis import strategies as st

from lmd.library.hub import retry_after
from lmd.library.rate import WINDOW_SECONDS, Rate
from lmd.library.transfer import Pace


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_to_a_limit_and_are_spread(fruitless: int, jitter: float) -> None:
    pace = Pace(first=1.0, longest=60.0)
    pause = pace.pause(fruitless, jitter)
    assert 0.75 <= pause <= 75.0
    assert pace.pause(fruitless + 1, jitter) >= pause


def test_the_environment_says_how_long_silence_may_last() -> None:
    assert Pace.of({"HF_HUB_DOWNLOAD_TIMEOUT": "7.5"}).stall == 7.5
    for nonsense in ("", "x", "-1", "0", "nan", "inf"):
        assert Pace.of({"HF_HUB_DOWNLOAD_TIMEOUT": nonsense}) == Pace()


def test_retry_after_is_seconds_and_bounded() -> None:
    assert retry_after({"retry-after": "12"}) == 12
    assert retry_after({"retry-after": "999999"}) == 3600
    assert retry_after({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}) is None
    assert retry_after({}) is None


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.bytes_per_second == 0
    for second in range(100):
        rate.add(second, 10 * second if second < 50 else 500 + 1000 * (second - 50))
    assert rate.bytes_per_second == 1000
    assert WINDOW_SECONDS < 50


def test_a_file_begun_anew_has_no_negative_rate() -> None:
    rate = Rate()
    for now, received in ((0, 0), (1, 100), (2, 0), (3, 50)):
        rate.add(now, received)
    assert rate.bytes_per_second == 50
