"""One strict JSON value, recognised while it streams."""

import json
import re
from typing import Any

MAX_DEPTH = 200
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]+')
_WORD_RUN = re.compile(r"[-+.0-9A-Za-z]+")
_WORD = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?|true|false|null")
_MAX_WORD = 400


class JsonScanner:
    """Feed it text; it says how much of it belongs to the value.

    ``scan`` returns the number of characters consumed; ``done`` turns true with the value's last character. A number
    at top level is done only when something else follows, so feed ``end()`` at the end of the text.
    `ValueError` at the first character that no JSON value could have there.
    """

    def __init__(self) -> None:
        self.done = False
        self._stack: list[str] = []
        self._expect = "value"
        """value | value_or_close | key | key_or_close | colon | comma | string | escape | hex | word"""
        self._key = False
        self._hex = 0
        self._word = ""

    def scan(self, text: str, start: int = 0) -> int:
        i = start
        while i < len(text) and not self.done:
            i = self._step(text, i)
        return i - start

    def end(self) -> None:
        """No more text follows."""
        if self._expect == "word":
            self._finish_word()
        if not self.done:
            raise ValueError("the value is not complete")

    def _step(self, text: str, i: int) -> int:
        expect = self._expect
        char = text[i]
        if expect == "string":
            run = _STRING_RUN.match(text, i)
            if run is not None:
                return run.end()
            if char == "\\":
                self._expect = "escape"
            elif char == '"':
                self._expect = "colon" if self._key else "comma"
                if not self._key:
                    self._value_done()
            else:
                raise ValueError("a control character in a string")
            return i + 1
        if expect == "escape":
            if char == "u":
                self._expect, self._hex = "hex", 4
            elif char in '"\\/bfnrt':
                self._expect = "string"
            else:
                raise ValueError("an unknown escape")
            return i + 1
        if expect == "hex":
            if char not in "0123456789abcdefABCDEF":
                raise ValueError("a bad escape")
            self._hex -= 1
            if not self._hex:
                self._expect = "string"
            return i + 1
        if expect == "word":
            run = _WORD_RUN.match(text, i)
            if run is not None:
                self._word += run.group()
                if len(self._word) > _MAX_WORD:
                    raise ValueError("a number without end")
                return run.end()
            self._finish_word()
            return i
        if char in " \t\r\n":
            return i + 1
        return self._structure(expect, char, i)

    def _structure(self, expect: str, char: str, i: int) -> int:
        if expect == "colon":
            if char != ":":
                raise ValueError("no colon after a key")
            self._expect = "value"
        elif (char == "}" and self._stack and self._stack[-1] == "{" and expect in {"comma", "key_or_close"}) or (
            char == "]" and self._stack and self._stack[-1] == "[" and expect in {"comma", "value_or_close"}
        ):
            self._stack.pop()
            self._value_done()
        elif expect == "comma":
            if char != ",":
                raise ValueError("no comma between values")
            self._expect = "key" if self._stack[-1] == "{" else "value"
        elif char == '"':
            self._key = expect in {"key", "key_or_close"}
            self._expect = "string"
        elif expect in {"key", "key_or_close"}:
            raise ValueError("no key")
        elif char in "{[":
            if len(self._stack) >= MAX_DEPTH:
                raise ValueError("nested too deeply")
            self._stack.append(char)
            self._expect = "key_or_close" if char == "{" else "value_or_close"
        elif char == "-" or (char.isascii() and char.isalnum()):
            self._word, self._expect = "", "word"
            return i
        else:
            raise ValueError("no value")
        return i + 1

    def _finish_word(self) -> None:
        if _WORD.fullmatch(self._word) is None:
            raise ValueError(f"no value: {self._word[:20]}")
        self._value_done()

    def _value_done(self) -> None:
        self._expect = "comma"
        self.done = not self._stack


def loads(text: str) -> Any:
    """`json.loads` that refuses NaN and Infinity and whose only error is ValueError."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc


def dumps(value: Any) -> str:
    """The one style in which lmd writes JSON: one line, ``", "`` and ``": "``, as models saw it in training."""
    return json.dumps(value, ensure_ascii=False)


def escaped(text: str) -> str:
    """``text`` as it stands inside a JSON string. Pieces may be escaped one by one."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
