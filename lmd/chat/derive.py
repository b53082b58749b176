"""Read a `Format` off a template: render turns full of sentinels and take what stands between them.

Nothing here knows a model's name. What cannot be read off is in `lmd.chat.overrides`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmd.chat.formats import Format, JsonKeys, Style
from lmd.chat.markers import common_prefix, common_suffix, tokens_in
from lmd.chat.probe import PROBE_TIME
from lmd.chat.shape import Shape, shaped, shaped_tools
from lmd.chat.template import ChatTemplate
from lmd.errors import TemplateError
from lmd.generation import Message, Role, TextPart, Tool, ToolCall

TEXT, THOUGHT = "Qtextq", "Qthoughtq"
NAMES = ("qfirstq", "qsecondq")
IDS = ("qidone001", "qidtwo002")
KEYS = ("qkeyaq", "qkeybq")
VALUES = ("Qvalaq", "Qvalbq")
EOS = "<EOSq>"

_TOOLS = tuple(
    Tool(
        name=name,
        description="Qdescriptionq",
        parameters={
            "type": "object",
            "properties": {key: {"type": "string", "description": "Qparameterq"} for key in KEYS},
            "required": [],
            "additionalProperties": False,
        },
    )
    for name in NAMES
)

#: Reasoning tags that templates only take away from earlier turns, or only open for the model, and never show whole.
_KNOWN_REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>"))


def derive(template: ChatTemplate) -> Format:
    """The format that the template's own rendering shows; with `Style.NONE` where it shows no calls."""
    probe = _Probe(template)
    format_ = _reasoning(probe)
    format_ = _wrappers(probe, format_)
    if template.shape.calls:
        format_ = _calls(probe, format_)
    stops, more = _stops(probe, format_)
    return replace(
        format_,
        stops=stops,
        wrappers=(*format_.wrappers, *more),
        short_ids=template.shape.short_ids,
        cdata="<![CDATA[" in template.source,
    )


def _arguments(n: int) -> dict[str, str]:
    return dict(list(zip(KEYS, VALUES, strict=True))[:n])


class _Probe:
    """Assistant turns of one template, from where the model begins to write."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self.shape: Shape = template.shape
        self.base = self._render([_user()]) or ""
        with_prompt = self._render([_user()], generation_prompt=True) or ""
        self.generation = with_prompt[common_prefix(self.base, with_prompt) :]
        self.thinking_prompt = self._render([_user()], generation_prompt=True, thinking=True) or ""

    def turn(self, *, reasoning: bool = False, text: bool = False, calls: int = 0, arguments: int = 2) -> str | None:
        """The turn as the template writes it, its header included; None where the template refuses or shows less."""
        message = Message(
            role=Role.ASSISTANT,
            parts=(TextPart(TEXT),) if text else (),
            reasoning=THOUGHT if reasoning else None,
            tool_calls=tuple(
                ToolCall(id=IDS[i], name=NAMES[i], arguments=json.dumps(_arguments(arguments))) for i in range(calls)
            ),
        )
        out = self._render([_user(), message])
        if out is None or (reasoning and THOUGHT not in out) or (text and TEXT not in out):
            return None
        turn = out[common_prefix(self.base, out) :]
        if any(name not in turn for name in NAMES[:calls]):
            return None
        return turn

    def cut_before(self, end: str) -> str:
        """The prompt up to the last ``end`` in it, where every prompt ends with a closed block."""
        return self.base[: self.base.rindex(end)] if end and end in self.base[-200:] else ""

    def _render(
        self, messages: list[Message], *, generation_prompt: bool = False, thinking: bool = False
    ) -> str | None:
        try:
            return self.template.render_raw(
                shaped(messages, self.shape),
                shaped_tools(_TOOLS) if self.shape.tools else [] if self.shape.empty_tools else None,
                bos="",
                eos=EOS,
                now=PROBE_TIME,
                add_generation_prompt=generation_prompt,
                args=self.template.reasoning_args("on") if thinking or self.shape.thinking_on else None,
            )
        except TemplateError:
            return None


def _user() -> Message:
    return Message(role=Role.USER, parts=(TextPart("Quserq"),))


# ── reasoning and text ────────────────────────────────────────────────────────────────────────


def _reasoning(probe: _Probe) -> Format:
    thinking = probe.turn(reasoning=True, text=True)
    plain = probe.turn(text=True)
    calling = probe.turn(reasoning=True, calls=1)
    shown = thinking or calling
    if shown is None:
        return _hinted_reasoning(probe)
    before = shown[: shown.index(THOUGHT)]
    header = plain[: plain.index(TEXT)] if plain is not None else probe.generation
    after = shown[shown.index(THOUGHT) + len(THOUGHT) :]
    if thinking is not None:
        after = after[: after.find(TEXT)] if TEXT in after else after
        if calling is not None:
            rest = calling[calling.index(THOUGHT) + len(THOUGHT) :]
            shared = after[: common_prefix(after, rest)]
            after = shared if shared.strip() else after
    tokens = tokens_in(after)
    end = after.strip() if thinking is not None and calling is not None and len(tokens) <= 2 else ""
    end = end or (tokens[0] if tokens else after.strip())
    return Format(reasoning_start=_reasoning_start(probe, before, header, end).strip(), reasoning_end=end)


def _reasoning_start(probe: _Probe, before: str, header: str, end: str) -> str:
    start = before[common_prefix(before, header) :]
    if start.strip():
        return start
    opened = probe.generation[len(before) :] if probe.generation.startswith(before) else ""
    if opened.strip() and end not in opened:
        # Only the generation prompt opens the block.
        return opened
    # The template opens the block in every turn, so the text-only turn has it too, or all of the turn's beginning.
    tokens = tokens_in(before) or tokens_in(probe.cut_before(end))
    return tokens[-1] if tokens else ""


def _hinted_reasoning(probe: _Probe) -> Format:
    source, opened = probe.template.source, probe.thinking_prompt.rstrip()
    for start, end in _KNOWN_REASONING:
        if end in source or opened.endswith(start):
            return Format(reasoning_start=start, reasoning_end=end)
    return Format()


def _header(probe: _Probe, turn: str, format_: Format) -> int:
    """Where in ``turn`` the model's own text begins: after the generation prompt, without a reasoning block in it."""
    generation = probe.generation
    candidates = [generation]
    start, end = format_.reasoning_start, format_.reasoning_end
    if start and start in generation:
        candidates.append(generation[: generation.rindex(start)])
    if end and end in generation:
        candidates.append(generation[: generation.index(end)])
    for candidate in candidates:
        for header in (candidate, candidate.rstrip()):
            if turn.startswith(header):
                return len(header)
    return common_prefix(turn, generation)


def _after_reasoning(text: str, format_: Format) -> str:
    """``text`` without a reasoning block (mostly an empty one) at its start."""
    end = format_.reasoning_end
    return text[text.rindex(end) + len(end) :] if end and end in text else text


def _wrappers(probe: _Probe, format_: Format) -> Format:
    plain = probe.turn(text=True)
    if plain is None:
        return format_
    lead = plain[_header(probe, plain, format_) : plain.index(TEXT)]
    thinking = probe.turn(reasoning=True, text=True)
    wrappers = [_after_reasoning(lead, format_).strip()]
    if thinking is not None and format_.reasoning_end:
        between = thinking[thinking.index(THOUGHT) + len(THOUGHT) : thinking.index(TEXT)]
        wrappers.append(_after_reasoning(between, format_).strip())
    calling = probe.turn(text=True, calls=1)
    tail = plain[plain.index(TEXT) + len(TEXT) :]
    if calling is not None and calling.index(TEXT) < calling.index(NAMES[0]):
        gap = calling[calling.index(TEXT) + len(TEXT) : calling.index(NAMES[0])]
        wrappers.append(tail[: common_prefix(tail, gap)].strip())
    elif any(wrappers) and tokens_in(tail):
        wrappers.append(_closing(wrappers, tail))
    text_start = lead if lead and not lead.strip() else ""
    return replace(format_, wrappers=tuple(dict.fromkeys(w for w in wrappers if w)), text_start=text_start)


def _closing(wrappers: list[str], tail: str) -> str:
    """The first marker of ``tail`` where it is the closing twin of a wrapper (``<|START_X|>``, ``<|END_X|>``)."""
    first = tokens_in(tail)[0]
    for wrapper in filter(None, wrappers):
        if first in {wrapper.replace("START", "END"), wrapper.replace("<", "</", 1), wrapper.replace("open", "close")}:
            return first
    return ""


def _stops(probe: _Probe, format_: Format) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What ends a turn; and what ends an answer's text but other parts too, so that it is only a wrapper."""
    markers = {token for text in (*format_.wrappers, format_.call_start, format_.call_end, format_.section_end,
                                  format_.section_start, format_.separator, format_.reasoning_end)
               for token in tokens_in(text)}  # fmt: skip
    tails = []
    if (plain := probe.turn(text=True)) is not None:
        tails.append(plain[plain.index(TEXT) + len(TEXT) :])
    end = format_.section_end.strip() or format_.call_end.strip()
    if end and (calling := probe.turn(calls=1)) is not None and end in calling:
        tails.append(calling[calling.rindex(end) + len(end) :])
    stops: list[str] = []
    shared: list[str] = []
    for tail in tails:
        tokens = [token for token in tokens_in(tail) if token != EOS]
        fresh = [token for token in tokens if token not in markers]
        if fresh:
            stops.append(fresh[0])
        elif tokens and tail is tails[0] and tokens[0] not in format_.wrappers:
            shared.append(tokens[0])
    return tuple(dict.fromkeys(stops)), tuple(shared)


# ── calls ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Core:
    """The part of a call that is not marker: where it starts and ends in a turn, and what was read off it."""

    start: int
    end: int
    style: Style
    fields: Mapping[str, Any]


def _calls(probe: _Probe, format_: Format) -> Format:
    one = probe.turn(calls=1)
    if one is None:
        one = probe.turn(calls=1, text=True)
        if one is None:
            return format_
        begin = one.index(TEXT) + len(TEXT)
    else:
        begin = _header(probe, one, format_)
    lead = one[begin:]
    core = _core(lead, 0)
    if core is None:
        return format_
    opening = _without_wrappers(_after_reasoning(lead[: core.start], format_), format_)
    closing = lead[core.end :]
    plain = probe.turn(text=True)
    tail = plain[plain.index(TEXT) + len(TEXT) :] if plain is not None else ""
    closing = _without_tail(closing, tail)
    fields = dict(core.fields)
    two = probe.turn(calls=2)
    parallel = two is not None
    array = core.style is Style.JSON and fields["json"].array
    if array or core.style is Style.PYTHONIC:
        # One list holds all calls, so what stands around it is the section.
        markers = {"section_start": opening, "section_end": _first_end(closing)}
    else:
        markers = _call_markers(two, core, opening, closing, tail)
    if array and two is not None:
        fields["json"] = _array_style(two[two.find("[", _header(probe, two, format_)) :], fields["json"])
    known: dict[str, Any] = {**fields, **markers}
    format_ = replace(format_, style=core.style, parallel=parallel, **known)
    if core.style is Style.TAGGED:
        return _tagged_ends(probe, format_)
    return format_


def _call_markers(two: str | None, core: _Core, opening: str, closing: str, tail: str) -> dict[str, str]:
    if two is None:
        return {"call_start": opening, "call_end": _first_end(closing)}
    first = _core(two, 0)
    second = _core(two, first.end, 1) if first is not None else None
    if first is None or second is None:
        return {"call_start": opening, "call_end": _first_end(closing)}
    between = two[first.end : second.start]
    last = _without_tail(two[second.end :], tail)
    size = common_suffix(opening, between)
    call_start = opening[len(opening) - size :] if size else ""
    section_start = opening[: len(opening) - size] if size else opening
    size = common_prefix(between, last)
    overlap = size + len(call_start) - len(between)
    if overlap > 0:
        # Blanks that end one call and begin the next count once: with the next.
        size -= overlap
    call_end, section_end = last[:size], last[size:]
    separator = between[size : len(between) - len(call_start)] if call_start else between[size:]
    if not section_start.strip():
        # No section was opened, so what follows the last call is the end of the turn.
        return {"call_start": call_start or opening, "call_end": call_end, "separator": separator}
    return {
        "section_start": section_start,
        "section_end": _first_end(section_end),
        "call_start": call_start,
        "call_end": call_end,
        "separator": separator,
    }


def _without_tail(text: str, tail: str) -> str:
    tail = tail.replace(EOS, "")
    text = text.replace(EOS, "")
    for end in (tail, tail.rstrip()):
        if end.strip() and text.rstrip().endswith(end.rstrip()):
            return text.rstrip()[: -len(end.rstrip())]
    return text


def _without_wrappers(text: str, format_: Format) -> str:
    for wrapper in format_.wrappers:
        if text.lstrip().startswith(wrapper):
            text = text.lstrip()[len(wrapper) :]
    return text


def _first_end(closing: str) -> str:
    tokens = tokens_in(closing)
    if not tokens:
        return closing.rstrip()
    return closing[: closing.index(tokens[0]) + len(tokens[0])]


def _core(text: str, begin: int, which: int = 0) -> _Core | None:
    """The call of name ``which`` in ``text`` at or after ``begin``."""
    return _json_core(text, begin, which) or _markup_core(text, begin, which)


def _json_core(text: str, begin: int, which: int) -> _Core | None:
    name = text.find(NAMES[which], begin)
    if name < 0:
        return None
    decoder = json.JSONDecoder()
    for i in range(begin, name):
        if text[i] not in "[{":
            continue
        try:
            value, end = decoder.raw_decode(text, i)
        except ValueError:
            continue
        if end <= name:
            continue
        keys = _json_keys(value[0] if isinstance(value, list) and value else value, which)
        if keys is not None:
            return _Core(i, end, Style.JSON, {"json": replace(keys, array=isinstance(value, list))})
    return None


def _json_keys(value: Any, which: int) -> JsonKeys | None:
    if not isinstance(value, dict):
        return None
    if NAMES[which] in value:
        return JsonKeys(name="", arguments="")
    name = next((key for key, item in value.items() if item == NAMES[which]), None)
    if name is None:
        for key, item in value.items():
            inner = _json_keys(item, which) if isinstance(item, dict) else None
            if inner is not None and inner.name:
                return replace(inner, wrapper=key)
        return None
    arguments = next((key for key, item in value.items() if isinstance(item, dict) or _is_arguments(item)), "")
    if not arguments:
        return None
    id_ = next((key for key, item in value.items() if key not in {name, arguments} and "id" in key.lower()), "")
    order = list(value)
    return JsonKeys(
        name=name,
        arguments=arguments,
        id=id_,
        name_first=order.index(name) < order.index(arguments),
        id_first=bool(id_) and order.index(id_) < order.index(name),
    )


def _array_style(text: str, keys: JsonKeys) -> JsonKeys:
    """How the template spaces an array of calls that stand on one line each."""
    match = re.search(r"(\[\s*)\{.*?\}(,\s*)\{.*\}(\s*\])", text, re.DOTALL)
    if match is None:
        return keys
    return replace(keys, array_open=match.group(1), array_separator=match.group(2), array_close=match.group(3))


def _is_arguments(item: Any) -> bool:
    return isinstance(item, str) and KEYS[0] in item


def _markup_core(text: str, begin: int, which: int) -> _Core | None:
    key = text.find(KEYS[0], begin)
    if key < 0:
        return None
    # The name may stand earlier too, as a recipient: the one next to the arguments counts.
    name = text.rfind(NAMES[which], begin, key)
    if name < 0:
        return None
    after = name + len(NAMES[which])
    id_at = text.find(IDS[which], after, key)
    decoder = json.JSONDecoder()
    brace = text.find("{", id_at if id_at >= 0 else after, key)
    if brace >= 0:
        try:
            value, end = decoder.raw_decode(text, brace)
        except ValueError:
            value, end = None, 0
        if isinstance(value, dict) and KEYS[0] in value:
            return _name_json(text, begin, which, name, id_at, brace, end)
        if text[brace + 1 : key] == "":
            return _Core(name, _closing_at(text, brace, "}"), Style.BRACES, {})
    if text[after : after + 1] == "(":
        start = text.rfind("[", begin, name)
        end = text.find("]", key)
        if start >= 0 and end >= 0:
            return _Core(start, end + 1, Style.PYTHONIC, {})
        return None
    if id_at >= 0:
        return None
    return _tagged(text, name, after, key)


def _closing_at(text: str, start: int, close: str) -> int:
    end = text.find(close, start)
    return len(text) if end < 0 else end + 1


def _name_json(  # noqa: PLR0917
    text: str, begin: int, which: int, name: int, id_at: int, brace: int, end: int
) -> _Core:
    after = name + len(NAMES[which])
    if id_at >= 0:
        fields = {"name_id": text[after:id_at], "name_end": text[id_at + len(IDS[which]) : brace]}
        return _Core(name, end, Style.NAME_JSON, fields)
    fields = {"name_end": text[after:brace]}
    before = text.rfind(IDS[which], begin, name)
    if before >= 0:
        fields["id_end"] = text[before + len(IDS[which]) : name]
        return _Core(before, end, Style.NAME_JSON, fields)
    return _Core(name, end, Style.NAME_JSON, fields)


def _tagged(text: str, name: int, after: int, key: int) -> _Core | None:
    value = text.find(VALUES[0], key)
    second = text.find(KEYS[1], value)
    second_value = text.find(VALUES[1], second)
    if min(value, second, second_value) < 0:
        return None
    between = text[value + len(VALUES[0]) : second]
    lead = text[after:key]
    size = common_suffix(lead, between)
    key_start = lead[len(lead) - size :]
    value_end = between[: len(between) - size]
    tokens = tokens_in(value_end)
    if not key_start.strip() or not tokens:
        return None
    # Blanks after the closing marker belong to what follows.
    cut = value_end.index(tokens[0]) + len(tokens[0])
    value_end = value_end[:cut]
    fields = {
        "name_end": lead[: len(lead) - size],
        "key_start": key_start,
        "key_end": text[key + len(KEYS[0]) : value],
        "value_end": value_end,
    }
    # K3 and DeepSeek write the value's type beside the key.
    for word in ("true", "string"):
        quoted = f'"{word}"'
        if quoted in fields["key_end"]:
            head, rest = fields["key_end"].split(quoted, 1)
            fields.update(key_end=head + '"', type_end='"' + rest)
            return _Core(name, second_value + len(VALUES[1]) + len(value_end), Style.TAGGED,
                         {**fields, "string_types": (word,)})  # fmt: skip
    return _Core(name, second_value + len(VALUES[1]) + len(value_end), Style.TAGGED, fields)


def _tagged_ends(probe: _Probe, format_: Format) -> Format:
    """Split what stands between name and arguments, and after them, by a call without arguments."""
    bare = probe.turn(calls=1, arguments=0)
    if bare is None:
        return format_
    after = bare[bare.rindex(NAMES[0]) + len(NAMES[0]) :]
    size = common_prefix(format_.name_end + format_.key_start, after)
    name_end = (format_.name_end + format_.key_start)[:size]
    key_start = (format_.name_end + format_.key_start)[size:]
    if key_start.strip() and len(name_end) > len(format_.name_end):
        return replace(format_, name_end=name_end, key_start=key_start)
    return format_
