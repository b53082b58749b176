"""Whether a constraint lets a text through, told by llguidance itself over single bytes."""

from llguidance import LLMatcher, LLTokenizer

from lmd.chat.constraints import ConstraintSpec
from lmd.engine.marked import resolve_markers

BYTES = LLTokenizer("byte")


def takes(spec: ConstraintSpec | None, text: str) -> bool:
    """Whether ``text`` is a whole answer under the constraint, for a vocabulary without control tokens."""
    return refusal(spec, text) == ""


def refusal(spec: ConstraintSpec | None, text: str) -> str:
    """What of ``text`` is refused; "" where it is a whole answer."""
    assert spec is not None
    assert spec.kind == "lark"
    grammar = LLMatcher.grammar_from_lark(resolve_markers(spec.source, lambda text: None))
    matcher = LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    data = text.encode()
    taken = matcher.try_consume_tokens(list(data))
    if taken < len(data):
        return f"{data[taken:].decode(errors='replace')!r} after {data[:taken].decode(errors='replace')!r}"
    return "" if matcher.is_accepting() else f"the end after {text!r}"
