"""How one model writes: the value that parser, constraint, stop conditions and capabilities come from.

An assistant's turn is read as::

    [reasoning_start … reasoning_end] text [section_start (call_start CALL call_end separator)* section_end]

and CALL by `Style`. Markers are kept as the template writes them; the parser compares them without the blanks at
their ends and lets any blanks stand between them.
"""

from dataclasses import dataclass
from enum import StrEnum


class Style(StrEnum):
    NONE = "none"
    """No native calls: the default tool format serves this model."""
    JSON = "json"
    """One JSON object holds name and arguments; several stand in an array or one after the other."""
    NAME_JSON = "name_json"
    """The name between markers, then the arguments as a JSON object."""
    TAGGED = "tagged"
    """The name between markers, then each argument between markers; strings stand bare."""
    PYTHONIC = "pythonic"
    """``[name(key=value, …), …]`` with Python or JSON literals."""
    BRACES = "braces"
    """``name{key:<|"|>text<|"|>,other:1}``: JSON with bare keys and a quote token (Gemma 4)."""
    ELEMENTS = "elements"
    """Each argument an element of its own name; objects and arrays nest (MiniMax M3)."""
    CHANNELS = "channels"
    """Messages in channels with a recipient (gpt-oss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonKeys:
    """Keys of `Style.JSON`. ``name == ""``: the name itself is the key of the arguments."""

    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    wrapper: str = ""
    """The key that holds the object with name and arguments (``function``); "": none."""
    array: bool = False
    """The calls stand in one array."""
    array_open: str = "["
    array_separator: str = ", "
    array_close: str = "]"
    name_first: bool = True
    id_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    reasoning_start: str = ""
    reasoning_end: str = ""
    """"" : the model does not reason. A start may be "" where only the end is written."""
    text_openings: tuple[str, ...] = ()
    """Markers that may stand before the answer's text and are no part of it."""
    text_closings: tuple[str, ...] = ()
    """The same after it."""
    text_start: str = ""
    """Blanks that the template puts before every answer."""
    style: Style = Style.NONE
    section_start: str = ""
    section_end: str = ""
    call_start: str = ""
    call_lead: str = ""
    """What may stand before a call that no marker opens (Llama's ``<|python_tag|>``)."""
    call_end: str = ""
    separator: str = ""
    """Between the end of a call and the start of the next one."""
    json: JsonKeys = JsonKeys()
    id_end: str = ""
    """NAME_JSON: what follows the id, where an id stands before the name."""
    name_id: str = ""
    """NAME_JSON: what stands between name and id, where an id follows the name."""
    name_end: str = ""
    """Between the name (or the id after it) and the arguments; may be ""."""
    key_start: str = ""
    key_end: str = ""
    """TAGGED: between key and value; where a type stands in there, up to the type."""
    type_end: str = ""
    """TAGGED: after the type, where the template writes one (``string="true">``)."""
    value_end: str = ""
    string_types: tuple[str, ...] = ()
    """TAGGED: the types that mean a bare string."""
    arguments_end: str = ""
    """TAGGED: after the last argument, before ``call_end``."""
    cdata: bool = False
    """TAGGED: values may stand in ``<![CDATA[ … ]]>``."""
    escapes: bool = False
    """PYTHONIC: strings are written as Python writes them; else nothing in them is escaped."""
    stops: tuple[str, ...] = ()
    """Ends of a turn, as text; they end generation and are no part of the answer."""
    parallel: bool = False
    """The template shows several calls in one turn."""
    short_ids: bool = False
    id_form: str = ""
    """Ids as the model counts them, with ``{name}`` and ``{index}`` (Kimi's ``functions.{name}:{index}``)."""
    prefill: str = ""
    """The end of every prompt that belongs to the answer's markers."""
    header: tuple[str, str] | None = None
    """Channels: what begins and what ends the header of a message."""
    message_ends: tuple[str, ...] = ()
    reasoning_headers: tuple[str, ...] = ()
    """Words in a header that mean reasoning."""
    recipient: str = ""
    """What stands before the tool's name in a header whose message is a call's arguments."""
    override: str = ""
    """The name of the override that this format is; "": derived."""

    @property
    def tool_use(self) -> bool:
        return self.style is not Style.NONE

    @property
    def reasoning(self) -> bool:
        return bool(self.reasoning_end)

    @property
    def opening(self) -> str:
        """What opens the first call, without blanks around it; "": nothing does, the call itself stands bare."""
        return (self.section_start or self.call_start).strip()

    @property
    def openings(self) -> tuple[str, ...]:
        """What opens calls in the text. Where sections have calls between markers, a call without its section too."""
        if not self.opening:
            return (self.call_lead,) if self.call_lead else ()
        start = self.call_start.strip()
        return (self.opening, start) if self.section_start.strip() and len(start) > 2 else (self.opening,)

    @property
    def blank_after_start(self) -> bool:
        """The default format's markers are words to the model, so it may set them off from what stands in them."""
        return self.override == "default"

    @property
    def opens_calls(self) -> bool:
        """Whether every call begins with a marker of its own, wherever it stands."""
        return bool(self.opening) and self.style is not Style.CHANNELS and (not self.prefill or self.header is not None)

    @property
    def triggers(self) -> tuple[str, ...]:
        """Texts with which a call has begun. The default format's marker alone may only be spoken of."""
        if self.blank_after_start:
            return tuple(f"{self.opening}{blank}{{" for blank in ("", "\n", " "))
        return self.openings

    @property
    def wrappers(self) -> tuple[str, ...]:
        """Markers around the answer's text that are no part of it."""
        return (*self.text_openings, *self.text_closings)

    @property
    def preserved(self) -> tuple[str, ...]:
        """Texts that may be control tokens and that the engine must give as text."""
        from lmd.chat.markers import tokens_in

        texts = (
            self.reasoning_start, self.reasoning_end, *self.wrappers, self.section_start, self.section_end,
            self.call_start, self.call_lead, self.call_end, self.separator, self.id_end, self.name_id, self.name_end,
            self.key_start, self.key_end, self.type_end, self.value_end, self.arguments_end, *self.stops,
            self.prefill, *(self.header or ()), *self.message_ends,
            "<|channel|><|constrain|>" if self.recipient else "",
            *(['<|"|>'] if self.style is Style.BRACES else []),
        )  # fmt: skip
        return tuple(dict.fromkeys(token for text in texts for token in tokens_in(text)))

    def written_id(self, name: str, written: str) -> str:
        """The id of a call that carries ``written`` after its name."""
        return self.id_form.format(name=name, index=written) if self.id_form and written.isdigit() else written

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether ``prompt`` ends inside a reasoning block."""
        start = self.reasoning_start.strip()
        return bool(start) and prompt.rstrip().endswith(start)
