"""Text that people and tools put into a conversation stays text, also where it spells a control token.

A rendered prompt is tokenized with the texts of control tokens read as those tokens: that is how a template says where
a turn ends. A message that contains such a text would end its own turn. So, before rendering, one character of each
such text in what the client sent is replaced by a stand-in (`Guard.shield`), and what is a control token in the
rendered prompt is then the template's own. `Guard.parts` puts the characters back and cuts the prompt so that these
places, and no others, are read as tokens.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from lmd.errors import InvalidRequest

_STAND_INS = range(0xF0000, 0xFFFFE)
"""Supplementary private use area A: no template writes or looks for these characters."""

_NAMES = frozenset({"role", "type"})
"""Keys whose values are words that templates compare with, never a person's text."""


class ControlTexts:
    """The texts of a vocabulary's control tokens, and where they are in a text. Immutable."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if text)
        self._lengths = sorted({len(text) for text in self._texts}, reverse=True)
        starts = sorted({text[:2] for text in self._texts})
        # Two characters: "<" alone is everywhere in code.
        self._start = re.compile("(?=" + "|".join(map(re.escape, starts)) + ")") if starts else None
        self._heads = frozenset(text[:n] for text in self._texts for n in range(1, len(text)))
        self._tails = frozenset(text[n:] for text in self._texts for n in range(1, len(text)))
        self._inner = "\0".join(text[1:-1] for text in self._texts)  # all parts of thousands of texts would be too many

    def __bool__(self) -> bool:
        return bool(self._texts)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Every place where a control text stands, overlapping ones too, by where it starts; the longest first."""
        if self._start is None:
            return []
        return [
            (at, at + length)
            for at in (match.start() for match in self._start.finditer(text))
            for length in self._lengths
            if text[at : at + length] in self._texts and at + length <= len(text)
        ]

    def edges(self, text: str) -> set[int]:
        """Where to break what could become a control text with what stands before ``text``, after it, or both."""
        longest = self._lengths[0] - 1 if self._lengths else 0
        ends = {at for at in range(max(0, len(text) - longest), len(text)) if text[at:] in self._heads}
        amid = any(text[:n] in self._tails for n in range(1, min(longest, len(text)) + 1))
        within = 0 < len(text) < longest and text in self._inner
        return ends | {0} if amid or within else ends


@lru_cache(maxsize=16)
def control_texts(texts: tuple[str, ...]) -> ControlTexts:
    """One for each vocabulary: making it costs milliseconds where there are thousands of control tokens."""
    return ControlTexts(texts)


Part = tuple[str, bool]
"""Text of a prompt, and whether control texts in it are tokens."""


class Guard:
    """Keeps a rendering's control tokens the template's own: `shield` what goes in, take `parts` of what comes out."""

    def __init__(self, control: ControlTexts) -> None:
        self._control = control
        self._stand_ins: dict[str, str] = {}
        self.spelled = False
        """A whole control text was among what was shielded, and not only what could become part of one."""

    def shield(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        args: Mapping[str, Any],
        markers: Sequence[str] = (),
    ) -> tuple[list[Any], list[Any] | None, dict[str, Any]]:
        """What the template is given, with stand-ins where it spells control tokens. Call it once.

        ``markers``: texts that the template itself takes apart what the assistant said by (``</think>``).
        """
        given = (messages, tools, args)
        used = {character for text in _strings(given) if not text.isascii() for character in text}
        self._free = (chr(code) for code in _STAND_INS if chr(code) not in used)
        kept = frozenset(marker.strip() for marker in markers)
        shielded = [self._within(m, kept if m.get("role") == "assistant" else frozenset()) for m in messages]
        return shielded, self._within(tools, frozenset()), self._within(dict(args), frozenset())

    def _within(self, value: Any, kept: frozenset[str]) -> Any:
        if isinstance(value, str):
            return self._text(value, kept)
        if isinstance(value, Mapping):
            return {
                self._key(key): inner if key in _NAMES and self._is_word(inner) else self._within(inner, kept)
                for key, inner in value.items()
            }  # fmt: skip
        if isinstance(value, list | tuple):
            return [self._within(inner, kept) for inner in value]
        return value

    def _is_word(self, value: Any) -> bool:
        """What templates may compare with or look up, and nothing that makes a control text with what is beside it."""
        return isinstance(value, str) and value.isidentifier() and not self._control.spans(value)

    def _key(self, key: Any) -> Any:
        return key if not isinstance(key, str) or self._is_word(key) else self._text(key, frozenset())

    def _text(self, text: str, kept: frozenset[str]) -> str:
        places = {at for at, end in self._control.spans(text) if text[at:end] not in kept}
        self.spelled |= bool(places)
        bare = text.strip()  # as many templates write it
        start = text.find(bare)
        places |= self._control.edges(text) | {start + at for at in self._control.edges(bare)}
        return self._replaced(text, places)

    def _replaced(self, text: str, places: set[int]) -> str:
        if not places:
            return text
        characters = list(text)
        for at in places:
            character = characters[at]
            if character not in self._stand_ins:
                stand_in = next(self._free, None)
                if stand_in is None:  # no StopIteration: a thread's future would never end by it
                    raise InvalidRequest(
                        "The messages use all characters of a private plane of Unicode, and spell control tokens.",
                        hint="Leave out characters from U+F0000 to U+FFFFD.",
                        param="messages",
                    )
                self._stand_ins[character] = stand_in
            characters[at] = self._stand_ins[character]
        return "".join(characters)

    @property
    def shielded(self) -> bool:
        """`shield` has replaced something."""
        return bool(self._stand_ins)

    def says_the_same(self, plain: str, rendered: str) -> bool:
        """Whether ``plain``, rendered without `shield`, has the control tokens that ``rendered`` has, and no others."""
        return self._texts(plain) == self._texts(rendered)

    def _texts(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self._control.spans(text)]

    def parts(self, rendered: str) -> tuple[Part, ...]:
        """``rendered`` with the client's characters again. One part wherever that says the same to the tokenizer."""
        if not self._stand_ins:
            return ((rendered, True),)
        back = {ord(stand_in): character for character, stand_in in self._stand_ins.items()}
        for stand_in in self._stand_ins.values():
            for escaped in _escapes(stand_in):
                rendered = rendered.replace(escaped, stand_in)
        whole = rendered.translate(back)  # one character for one: places stay where they are
        own = self._control.spans(rendered)
        if self._control.spans(whole) == own:
            return ((whole, True),)
        parts: list[Part] = []
        done = 0
        for start, end in own:
            if start < done:
                continue
            _add(parts, whole[done:start], special=False)
            _add(parts, whole[start:end], special=True)
            done = end
        _add(parts, whole[done:], special=False)
        return tuple(parts)


def _add(parts: list[Part], text: str, *, special: bool) -> None:
    if not text:
        return
    if special and parts and parts[-1][1]:
        parts[-1] = (parts[-1][0] + text, True)
    else:
        parts.append((text, special))


def _escapes(character: str) -> tuple[str, str]:
    """How templates write a stand-in that they put into ASCII JSON, or a list or table that they put into text."""
    code = ord(character)
    low, high = 0xDC00 + (code & 0x3FF), 0xD800 + (code - 0x10000 >> 10)
    return f"\\u{high:04x}\\u{low:04x}", f"\\U{code:08x}"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)
