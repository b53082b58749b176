"""Durations and sizes as people write them.

`Duration` and `Size` are field types for pydantic: they read what `parse_duration` and `parse_size` read, and
serialise to the same notation. Inside lmd a duration is float seconds (``inf``: never) and a size int bytes.
"""

import re
from math import inf, isfinite
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from lmd.protocol import MAX_DURATION, format_duration, parse_duration

__all__ = ["MAX_DURATION", "Duration", "Size", "format_duration", "format_size", "parse_duration", "parse_size"]

MAX_SIZE = 2**63 - 1

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([kmgtp]?i?b)?", re.IGNORECASE | re.ASCII)
_FACTORS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgtp", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}


def parse_size(text: str) -> int:
    """Bytes in ``512MiB`` (powers of 1024), ``16GB`` (powers of 1000) or ``4096``. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    factor = _FACTORS.get((match[2] or "").lower()) if match else None
    if match is None or factor is None:
        raise ValueError("expected a size such as 512MiB, 16GB or a number of bytes")
    whole, _, part = match[1].partition(".")
    # In integers, so that 0.1 and sizes beyond 2**53 come out exact; a part of a byte is dropped.
    size: int = int(whole + part) * factor // 10 ** len(part)
    if size > MAX_SIZE:
        raise ValueError("this size is beyond 8 EiB")
    return size


def format_size(size: int) -> str:
    """The shortest exact notation: ``512MiB``, ``16GB``, ``4097``. `parse_size` gives ``size`` back."""
    if size == 0:
        return "0"
    fits = [
        f"{size // factor}{unit}"
        for power, prefix in enumerate("KMGTP", start=1)
        for unit, factor in ((prefix + "iB", 1024**power), (prefix + "B", 1000**power))
        if size % factor == 0
    ]
    return min([str(size), *fits], key=lambda text: (len(re.match(r"\d*", text)[0]), text))  # type: ignore[index]


def _read_duration(value: Any) -> float:
    match value:
        case str():
            return parse_duration(value)
        case bool():
            pass
        case int() | float() if value == inf or (isfinite(value) and 0 <= value <= MAX_DURATION):
            return float(value)
    raise ValueError('expected a duration such as 90s, 5m, 1h30m, a number of seconds, or "never"')


def _read_size(value: Any) -> int:
    match value:
        case str():
            return parse_size(value)
        case bool():
            pass
        case int() if 0 <= value <= MAX_SIZE:
            return int(value)
    raise ValueError("expected a size such as 512MiB, 16GB or a number of bytes")


Duration = Annotated[float, BeforeValidator(_read_duration), PlainSerializer(format_duration, return_type=str)]
"""Seconds, 0 or more; ``inf`` for ``"never"``. Reads numbers of seconds and notations such as ``1h30m``."""

Size = Annotated[int, BeforeValidator(_read_size), PlainSerializer(format_size, return_type=str)]
"""Bytes, 0 or more. Reads numbers of bytes and notations such as ``512MiB``."""
