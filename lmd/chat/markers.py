"""Markers in text: what looks like a control token or a tag, and where two texts part without cutting through one."""

import re

#: ``<…>``, ``[NAME]`` and doubled brackets, as chat templates write control tokens and tags.
TOKEN = re.compile(r"\]<\][^\[\]<>]{1,40}\[>\[|\[e~\[|\]~b\]|<[^<>\s][^<>]{0,80}>|\[/?[A-Z][A-Z_ ]{1,40}\]")


def tokens_in(text: str) -> list[str]:
    return TOKEN.findall(text)


def common_prefix(a: str, b: str) -> int:
    """Length of the longest common prefix that cuts through no marker of either."""
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return min(_outside(a, length), _outside(b, length))


def common_suffix(a: str, b: str) -> int:
    """Length of the longest common suffix that cuts through no marker of either."""
    length = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        length += 1
    return min(_after(a, length), _after(b, length))


def _spans(text: str) -> list[tuple[int, int]]:
    spans = [match.span() for match in TOKEN.finditer(text)]
    # A marker that ends beyond this text (``<function=``) is open from its bracket on.
    last = max(text.rfind("<"), -1)
    if last >= 0 and not any(start <= last < end for start, end in spans):
        spans.append((last, len(text) + 1))
    return spans


def _outside(text: str, length: int) -> int:
    for start, end in _spans(text):
        if start < length < end and length < len(text):
            return start
    return length


def _after(text: str, length: int) -> int:
    cut = len(text) - length
    for start, end in _spans(text):
        if start < cut < min(end, len(text)):
            return len(text) - min(end, len(text))
    return length
