"""Read off a template how its model writes tool calls: the part of `lmd.chat.derive` that looks at them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmd.chat.formats import Format, JsonKeys, Style
from lmd.chat.markers import common_prefix, common_suffix, tokens_in
from lmd.chat.sentinels import EOS, IDS, KEYS, NAMES, TEXT, VALUES, Probe, after_reasoning, header_of


@dataclass(frozen=True, slots=True)
class _Core:
    """The part of a call that is not marker: where it starts and ends in a turn, and what was read off it."""

    start: int
    end: int
    style: Style
    fields: Mapping[str, Any]


def calls_of(probe: Probe, format_: Format) -> Format:
    """``format_`` with its style and the markers of calls; as it was where the template shows none that is known."""
    one = probe.turn(calls=1)
    if one is None:
        one = probe.turn(calls=1, text=True)
        if one is None:
            return format_
        begin = one.index(TEXT) + len(TEXT)
    else:
        begin = header_of(probe, one, format_)
    lead = one[begin:]
    core = _core(lead, 0)
    if core is None:
        return format_
    opening = _without_wrappers(after_reasoning(lead[: core.start], format_), format_)
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
        fields["json"] = _array_style(two[two.find("[", header_of(probe, two, format_)) :], fields["json"])
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


def _name_json(  # noqa: PLR0917 -- positions in one text
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


def _tagged_ends(probe: Probe, format_: Format) -> Format:
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
