"""The Jinja environment that chat templates run in: what Hugging Face defines, and an end to every rendering.

A template comes with a model file, so it is a program of a stranger. `jinja2.sandbox` keeps it from the interpreter;
this module keeps it from running for ever or filling the memory. Jinja has no ``while``: work repeats only in ``for``,
in calls (macros, recursive loops) and in operators and filters that make long values. Each of those
counts against a `Budget` that `bounded` sets for one rendering.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_STEPS = 20_000_000
MAX_CHARS = 64 * 1024 * 1024
MAX_WIDTH = 10_000
MAX_SOURCE = 4 * 1024 * 1024


class Refused(JinjaError):
    """The template called ``raise_exception``."""


class CutOff(JinjaError):
    """The template used up its budget."""


class Budget:
    """What one rendering may use: ``steps`` (loop turns and calls) and seconds of wall time."""

    __slots__ = ("deadline", "left")

    def __init__(self, seconds: float, steps: int = MAX_STEPS) -> None:
        self.left = steps
        self.deadline = time.monotonic() + seconds

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutOff(f"it was cut off after {MAX_STEPS} steps")
        if not self.left & 0xFF and time.monotonic() > self.deadline:
            raise CutOff("it was cut off because it took too long")


_budget: ContextVar[Budget | None] = ContextVar("lmd_template_budget", default=None)


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Rendering inside ends with `CutOff` after ``seconds`` or `MAX_STEPS`."""
    token = _budget.set(Budget(seconds))
    try:
        yield
    finally:
        _budget.reset(token)


def _tick() -> None:
    if (budget := _budget.get()) is not None:
        budget.tick()


def _check_deadline() -> None:
    if (budget := _budget.get()) is not None and time.monotonic() > budget.deadline:
        raise CutOff("it was cut off because it took too long")


def check_size(size: float) -> None:
    if size > MAX_CHARS:
        raise CutOff(f"it was cut off because it makes a text or list longer than {MAX_CHARS}")
    if size > 65536:
        _check_deadline()


def _counted(iterable: Any) -> Any:
    """``iterable`` for a ``for`` loop. Sized ones stay so (``loop.length``), but pay for their items at once."""
    if isinstance(iterable, (list, tuple, dict, str, range)) or hasattr(iterable, "__len__"):
        budget = _budget.get()
        if budget is not None:
            budget.left -= len(iterable)
            budget.tick()
            _check_deadline()
        return iterable
    return _counting(iter(iterable))


def _counting(iterator: Iterator[Any]) -> Iterator[Any]:
    for item in iterator:
        _tick()
        yield item


def _join(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    check_size(sum(map(len, texts)))
    return "".join(texts)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As Hugging Face defines it: no HTML escapes, and Python's default separators."""
    if isinstance(indent, int):
        indent = min(indent, MAX_WIDTH)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: Any) -> list[Any]:
    """What ``map`` and ``select`` give is an iterator; templates write it out as a list."""
    if isinstance(value, Iterator):
        return list(_counting(value))
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def from_json(text: str) -> Any:
    return json.loads(text)


def _raise_exception(message: Any = "") -> None:
    raise Refused(str(message))


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks the assistant's tokens for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 -- as jinja2.ext.Extension declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


#: Filters whose integer arguments size what they make.
_WIDE_FILTERS = ("center", "indent", "batch", "slice", "wordwrap", "truncate", "format")
_WIDE_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})


def _check_widths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_WIDTH:
            raise CutOff(f"it asks for a width of {value}")


def _check_format(text: str) -> None:
    """A width in a format is a number of digits in it; five of them are more than any template needs."""
    digits = 0
    for char in text:
        digits = digits + 1 if char.isdigit() else 0
        if digits > 4:
            raise CutOff("it asks for a format that is too wide")


def _narrow(name: str, plain: Any) -> Any:
    passes = getattr(plain, "jinja_pass_arg", None)

    def narrow(*args: Any, **kwargs: Any) -> Any:
        _check_deadline()
        lead = 2 if passes is not None else 1
        _check_widths(args[lead:], kwargs)
        if name == "format":
            _check_format(str(args[lead - 1]))
        elif name == "indent":
            text, width = str(args[lead - 1]), (args[lead] if len(args) > lead else kwargs.get("width", 4))
            check_size(len(text) + text.count("\n") * (width if isinstance(width, int) else len(str(width))))
        return plain(*args, **kwargs)

    if passes is not None:
        narrow.jinja_pass_arg = passes  # type: ignore[attr-defined]  # as jinja2.pass_environment sets it
    return narrow


def _check_replace(text: str, old: Any, new: Any) -> None:
    found = text.count(old) if isinstance(old, str) else 0
    check_size(len(text) + found * (len(new) if isinstance(new, str) else 0))


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates. One for each `ChatTemplate`; safe in threads once a template is compiled."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        for name in _WIDE_FILTERS:
            self.filters[name] = _narrow(name, self.filters[name])
        replace, join = self.filters["replace"], self.filters["join"]

        def bounded_replace(eval_ctx: Any, s: Any, old: Any, new: Any, count: Any = None) -> Any:
            _check_replace(str(s), str(old), str(new))
            return replace(eval_ctx, str(s), str(old), str(new), count)

        def bounded_join(eval_ctx: Any, value: Any, d: Any = "", attribute: Any = None) -> Any:
            items = list(_counted(value))
            check_size(len(items) * len(str(d)) + sum(len(item) for item in items if isinstance(item, str)))
            return join(eval_ctx, items, str(d), attribute)

        bounded_replace.jinja_pass_arg = replace.jinja_pass_arg  # type: ignore[attr-defined]  # see _narrow
        bounded_join.jinja_pass_arg = join.jinja_pass_arg  # type: ignore[attr-defined]  # see _narrow
        self.filters.update(
            tojson=to_json,
            from_json=from_json,
            fromjson=from_json,
            replace=bounded_replace,
            join=bounded_join,
            lmd_counted=_counted,
            lmd_join=_join,
        )
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["namespace"] = Namespace

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The template's tree, with every loop made to count its turns and every ``~`` its length."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "lmd_counted", [], [], None, None, lineno=loop.lineno)
        _bound_concatenations(tree)
        return tree.set_environment(self)  # type: ignore[return-value]  # typed as any Node; it returns the node itself

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            check_size(len(left) + len(right))
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(times, int):
                    check_size(len(many) * times)
            _check_digits(left, right)
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_widths(right if isinstance(right, tuple) else (right,), {}) if "*" in left else None
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_size(abs(right) * math.log2(max(2, abs(left))) * 64)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Lists may grow: templates collect with ``append``, and what they are given is made for one rendering."""
        if isinstance(obj, list) and attr in {"append", "extend"}:
            return True
        return super().is_safe_attribute(obj, attr, value)

    # jinja calls this with what the template wrote; the underscores keep its keyword arguments from colliding.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(__obj, "__name__", "")
            if name in _WIDE_METHODS:
                _check_widths(args, kwargs)
                if name in {"format", "format_map"}:
                    _check_format(owner)
            elif name == "replace" and len(args) >= 2:
                _check_replace(owner, args[0], args[1])
            elif name == "join" and args and hasattr(args[0], "__len__"):
                check_size(len(owner) * len(args[0]) + sum(len(x) for x in args[0] if isinstance(x, str)))
        return super().call(__context, __obj, *args, **kwargs)


def _check_digits(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 65536:
        raise CutOff("it makes a number that is too large")


def _bound_concatenations(node: nodes.Node) -> None:
    for child in node.iter_child_nodes():
        _bound_concatenations(child)
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(node, name, _bounded_concatenation(value))
        elif isinstance(value, list):
            value[:] = [_bounded_concatenation(item) if isinstance(item, nodes.Concat) else item for item in value]


def _bounded_concatenation(node: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), "lmd_join", [], [], None, None, lineno=node.lineno)


def strftime_now(now: datetime) -> Any:
    """The ``strftime_now`` of a rendering that takes place at ``now``."""

    def strftime(format_: str) -> str:
        _check_format(str(format_))
        return now.strftime(str(format_))

    return strftime
