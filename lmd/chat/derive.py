"""Read a `Format` off a template: render turns full of sentinels and take what stands between them.

Nothing here knows a model's name. What cannot be read off is in `lmd.chat.overrides`.
"""

from dataclasses import replace

from lmd.chat.derive_calls import calls_of
from lmd.chat.formats import Format
from lmd.chat.markers import common_prefix, tokens_in
from lmd.chat.sentinels import EOS, NAMES, TEXT, THOUGHT, Probe, after_reasoning, header_of
from lmd.chat.template import ChatTemplate

#: Reasoning tags that templates only take away from earlier turns, or only open for the model, and never show whole.
_KNOWN_REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>"))


def derive(template: ChatTemplate) -> Format:
    """The format that the template's own rendering shows; with `Style.NONE` where it shows no calls."""
    probe = Probe(template)
    format_ = _reasoning(probe)
    format_ = _wrappers(probe, format_)
    if template.shape.calls:
        format_ = calls_of(probe, format_)
    stops, more = _stops(probe, format_)
    return replace(
        format_,
        stops=stops,
        text_closings=(*format_.text_closings, *more),
        short_ids=template.shape.short_ids,
        cdata="<![CDATA[" in template.source,
    )


def _reasoning(probe: Probe) -> Format:
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


def _reasoning_start(probe: Probe, before: str, header: str, end: str) -> str:
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


def _hinted_reasoning(probe: Probe) -> Format:
    source, opened = probe.template.source, probe.thinking_prompt.rstrip()
    for start, end in _KNOWN_REASONING:
        if end in source or opened.endswith(start):
            return Format(reasoning_start=start, reasoning_end=end)
    return Format()


def _wrappers(probe: Probe, format_: Format) -> Format:
    plain = probe.turn(text=True)
    if plain is None:
        return format_
    lead = plain[header_of(probe, plain, format_) : plain.index(TEXT)]
    thinking = probe.turn(reasoning=True, text=True)
    openings = [after_reasoning(lead, format_).strip()]
    if thinking is not None and format_.reasoning_end:
        between = thinking[thinking.index(THOUGHT) + len(THOUGHT) : thinking.index(TEXT)]
        openings.append(after_reasoning(between, format_).strip())
    calling = probe.turn(text=True, calls=1)
    tail = plain[plain.index(TEXT) + len(TEXT) :]
    if calling is not None and calling.index(TEXT) < calling.index(NAMES[0]):
        gap = calling[calling.index(TEXT) + len(TEXT) : calling.index(NAMES[0])]
        closing = tail[: common_prefix(tail, gap)].strip()
    else:
        closing = _closing(openings, tail)
    return replace(
        format_,
        text_openings=tuple(dict.fromkeys(filter(None, openings))),
        text_closings=(closing,) if closing else (),
        text_start=lead if lead and not lead.strip() else "",
    )


def _closing(openings: list[str], tail: str) -> str:
    """The first marker of ``tail`` where it is the closing twin of an opening one (``<|START_X|>``, ``<|END_X|>``)."""
    first = next(iter(tokens_in(tail)), "")
    for opening in filter(None, openings):
        if first in {opening.replace("START", "END"), opening.replace("<", "</", 1), opening.replace("open", "close")}:
            return first
    return ""


def _stops(probe: Probe, format_: Format) -> tuple[tuple[str, ...], tuple[str, ...]]:
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
