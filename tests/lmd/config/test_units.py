from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lmd.config.units import (
    MAX_DURATION,
    MAX_SIZE,
    Duration,
    Size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300", 300),
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("1h 30m", 5400),
        (" 5M ", 300),
        ("0", 0),
        ("0s", 0),
        ("never", inf),
        ("Never", inf),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "-1", "-5m", "m", "5x", "30m1h", "5m5m", "1h30", "inf", "nan", "1e3", "٣s", "9" * 400, "٣"]
)
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@given(st.integers(0, int(MAX_DURATION)) | st.floats(0, MAX_DURATION).map(lambda x: round(x, 6)) | st.just(inf))
def test_a_formatted_duration_reads_back(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@given(st.integers(0, int(MAX_DURATION)))
def test_whole_seconds_read_back_exactly(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert seconds == inf or 0 <= seconds <= MAX_DURATION


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("16GB", 16 * 10**9),
        ("0.1GB", 10**8),
        ("1.5 GiB", 3 * 2**29),
        ("4096", 4096),
        ("4096B", 4096),
        ("1kb", 1000),
        ("1KIB", 1024),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 XB", "1ib", "1e3", "16 G B", "1G", "9PiB9", "10000PB", "9" * 400])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


sizes = st.integers(0, MAX_SIZE) | st.builds(
    lambda n, unit: n * unit, st.integers(0, 9000), st.sampled_from([1000, 1024, 10**9, 2**30, 2**40])
)


@given(sizes)
def test_a_formatted_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("value", [True, False, -1, -0.5, float("nan"), [], None, "5x"])
def test_a_duration_field_takes_only_durations(value: object) -> None:
    with pytest.raises(ValidationError, match="expected a duration"):
        TypeAdapter(Duration).validate_python(value)


@pytest.mark.parametrize("value", [True, -1, 1.5, [], None, "12 XB"])
def test_a_size_field_takes_only_sizes(value: object) -> None:
    with pytest.raises(ValidationError, match="expected a size"):
        TypeAdapter(Size).validate_python(value)


def test_fields_serialise_to_the_notation_that_they_read() -> None:
    assert TypeAdapter(Duration).dump_python(TypeAdapter(Duration).validate_python("90m")) == "1h30m"
    assert TypeAdapter(Duration).dump_python(inf) == "never"
    assert TypeAdapter(Size).dump_python(TypeAdapter(Size).validate_python(16 * 10**9)) == "16GB"
