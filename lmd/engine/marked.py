"""Markers in a Lark grammar, as the vocabulary has them.

A chat format's markers (``<tool_call>``, ``[ARGS]``) are control tokens in some vocabularies and plain text in others,
and only the vocabulary knows. So a grammar that comes over the process boundary names them by text, and they are
resolved here, before llguidance reads it:

    %%"<tool_call>"%%         this marker
    %%until "</think>"%%      any text up to this marker, and the marker

The text between the quotes is JSON.
"""

import json
import re
from collections.abc import Callable

_MARK = re.compile(r'%%(until )?("(?:[^"\\]|\\.)*")%%')
_FREE = r"/(.|\n)*/"


def resolve_markers(lark: str, control_token: Callable[[str], int | None]) -> str:
    """``lark`` with every marker as a token where ``control_token`` knows its text, else as characters.

    ``control_token`` gives the id of the control (or user-defined) token whose text this is; None: there is none.
    """
    rules: dict[str, str] = {}

    def resolved(match: re.Match[str]) -> str:
        literal = match.group(2)
        token = control_token(json.loads(literal))
        if token is not None:
            return f"({_FREE} <[{token}]>)" if match.group(1) else f"<[{token}]>"
        if not match.group(1):
            return literal
        return rules.setdefault(literal, f"until_{len(rules)}")

    text = _MARK.sub(resolved, lark)
    return text + "".join(f"\n{name}[suffix={literal}]: {_FREE}\n" for literal, name in rules.items())
