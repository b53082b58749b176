"""Numbers as people read them, and text that is safe on a terminal. Pure."""

import re

# C0 and C1 controls but newline and tab: a model's answer or a file's name must not steer the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def duration(seconds: float | None) -> str:
    """At most two units, rounded down: ``4m 10s``, ``1h``, ``2d 3h``; None is ``never``."""
    if seconds is None:
        return "never"
    left = max(0, int(seconds))
    named = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        n, left = divmod(left, size)
        named.append((n, unit))
    first = next((i for i, (n, _) in enumerate(named) if n), 3)
    shown = [f"{n}{unit}" for n, unit in named[first : first + 2] if n]
    return " ".join(shown) or "0s"


def size(n_bytes: int) -> str:
    """Binary units with three significant digits: ``1.69 MiB``, ``23.8 GiB``; ``-`` for 0, which means unknown."""
    if n_bytes <= 0:
        return "-"
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def count(n: int) -> str:
    """A parameter count as model names write it: ``870K``, ``7.6B``; ``-`` for 0, which means unknown."""
    if n <= 0:
        return "-"
    value = float(n)
    for unit in ("", "K", "M", "B", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= 1000
    return f"{value:.1f}".removesuffix(".0") + unit if value < 10 else f"{value:.0f}{unit}"


def counted(n: int, noun: str) -> str:
    """``1 file``, ``2 files``: for nouns that take an s."""
    return f"{n} {noun}" + "s" * (n != 1)


def printable(text: str) -> str:
    """``text`` without control characters, so that no file or model moves the cursor."""
    return _CONTROLS.sub("", text)


def one_line(text: str) -> str:
    """`printable` on one line, for a table's cell."""
    return " ".join(printable(text).split())
