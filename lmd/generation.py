"""What is asked of a model and what it answers: the one language between the dialects and the rest.

A dialect decodes a body to a `GenerationRequest`; everything behind it speaks `GenerationEvent`,
which the same dialect encodes. Nothing here knows HTTP, a file, or a process.

`SamplingParams` is also the schema of a preset's ``[sampling]``, so its fields carry their bounds
(``annotated_types``, which pydantic reads and msgspec passes by).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Len

# ── sampling ──────────────────────────────────────────────────────────────────────────────────


ContextOverflow = Literal["stop_at_limit", "truncate_middle", "rolling_window"]
"""LM Studio's three policies. stop_at_limit: a prompt that does not fit is refused, an answer ends where the context is
full. truncate_middle: the beginning and the end are kept. rolling_window: the end is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn. ``None`` means "not said": see `over`.

    Neutral values (what the engine takes for ``None``): temperature 0.8, top_p 1, top_k 0 (off),
    min_p 0, penalties 0 (repeat 1), a random seed, no limit on tokens.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    temperature: Annotated[float, Ge(0), Le(5)] | None = None
    top_p: Annotated[float, Gt(0), Le(1)] | None = None
    top_k: Annotated[int, Ge(-1), Le(2**31 - 1)] | None = None
    """0 and -1 keep the whole vocabulary."""
    min_p: Annotated[float, Ge(0), Le(1)] | None = None
    repeat_penalty: Annotated[float, Gt(0), Le(10)] | None = None
    presence_penalty: Annotated[float, Ge(-2), Le(2)] | None = None
    frequency_penalty: Annotated[float, Ge(-2), Le(2)] | None = None
    seed: int | None = None
    """Any integer; taken modulo 2**32. Unset or negative: a new one for each request."""
    max_tokens: Annotated[int, Ge(-1)] | None = None
    """-1: until the model ends or the context is full."""
    stop: Annotated[tuple[str, ...], Len(0, 64)] | None = None
    """Strings that end the answer and are not part of it."""

    context_overflow: ContextOverflow | None = None
    """What happens when prompt and answer do not fit the context. Unset: "stop_at_limit"."""

    # Beyond OpenAI's, by the names that llama-server gave them. Unset: off.
    repeat_last_n: Annotated[int, Ge(-1), Le(65536)] | None = None
    """How many last tokens the penalties look at. Unset: 64; 0: none; -1: the whole context."""
    typical_p: Annotated[float, Gt(0), Le(1)] | None = None
    top_n_sigma: Annotated[float, Ge(0)] | None = None
    xtc_probability: Annotated[float, Ge(0), Le(1)] | None = None
    xtc_threshold: Annotated[float, Ge(0), Le(1)] | None = None
    """Unset: 0.1."""
    dynatemp_range: Annotated[float, Ge(0), Le(5)] | None = None
    """The temperature varies by this much either way with the entropy of what may follow."""
    dynatemp_exponent: Annotated[float, Gt(0)] | None = None
    mirostat: Annotated[int, Ge(0), Le(2)] | None = None
    """1 or 2: that version of mirostat takes the place of top-k, top-p, min-p, typical and XTC."""
    mirostat_tau: Annotated[float, Gt(0)] | None = None
    """Unset: 5."""
    mirostat_eta: Annotated[float, Gt(0), Le(1)] | None = None
    """Unset: 0.1."""
    dry_multiplier: Annotated[float, Ge(0)] | None = None
    dry_base: Annotated[float, Ge(1)] | None = None
    """Unset: 1.75."""
    dry_allowed_length: Annotated[int, Ge(0), Le(2**31 - 1)] | None = None
    """Unset: 2."""
    dry_penalty_last_n: Annotated[int, Ge(-1), Le(65536)] | None = None
    """Unset and -1: the whole context."""
    dry_sequence_breakers: Annotated[tuple[str, ...], Len(0, 64)] | None = None
    """Unset: newline, colon, double quote, asterisk."""

    def over(self, base: Self) -> Self:
        """These parameters, with what they leave unsaid taken from ``base``."""
        said = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(base, **said)


# ── conversation ──────────────────────────────────────────────────────────────────────────────


class Role(StrEnum):
    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image as the client sent it: ``data`` is the decoded file, never a URL that lmd would fetch."""

    data: bytes
    media_type: str


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model made. ``arguments`` is one JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: Role
    parts: tuple[Part, ...] = ()
    name: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call. ``parameters`` is a JSON schema; None: it takes no arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``name`` is set exactly when ``mode`` is "named"."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """What the answer's text must be. ``source``: the JSON schema (a mapping), or the grammar's text."""

    kind: Literal["text", "json_object", "json_schema", "gbnf", "lark", "regex"] = "text"
    source: Mapping[str, Any] | str | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, to be rendered by the model's own template."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    reasoning_effort: str | None = None
    """As the client said it: "none", "minimal", "low", "medium", "high", …; None: the model's default."""
    template_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPrompt:
    """A prompt for plain completion: text, or token ids as the model's vocabulary has them."""

    text: str = ""
    tokens: tuple[int, ...] | None = None
    suffix: str | None = None
    echo: bool = False
    response_format: ResponseFormat = ResponseFormat()
    """A grammar or regex that the completion has to follow; no JSON schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for text, decoded from a dialect and not yet resolved to a model's defaults."""

    model: str
    prompt: ChatPrompt | RawPrompt
    sampling: SamplingParams = SamplingParams()
    """Only what the client said: the preset's and the defaults' values go under it."""
    preset: str | None = None
    draft_model: str | None = None
    ttl: float | None = None
    """Seconds; ``inf`` pins; None: not said."""
    context_length: int | None = None
    """The least context, in tokens, of an instance that may serve this; a model that has less is loaded with it."""
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    """How many alternatives to tell for each token; 0: only the chosen one's; None: no logprobs."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    cache_prompt: bool = True


# ── answer ────────────────────────────────────────────────────────────────────────────────────


class FinishReason(StrEnum):
    """Why a sequence ended. Dialects map these to their own words."""

    EOG = "eog"
    """The model sampled an end-of-generation token."""
    STOP = "stop"
    """One of the request's stop strings appeared."""
    LENGTH = "length"
    """max_tokens were generated."""
    CONTEXT = "context"
    """The sequence filled its context."""
    TOOL_CALLS = "tool_calls"
    """The answer ended with tool calls (found by the parser, never by the engine)."""
    CANCELLED = "cancelled"
    """The client went away or took its request back."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability; ``data`` is its bytes (maybe half a character)."""

    token: int
    data: bytes
    logprob: float | None
    """None: the first token of a prompt, before which there is nothing."""
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """True counts of one sequence. Times in seconds."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's tokens, those taken from a cache and not computed."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    """Of the drafted tokens, those that the target model agreed with."""
    ignored_draft_tokens: int = 0
    """Drafted but never verified: thrown away because the sequence ended or changed course."""
    queue_seconds: float = 0.0
    """From arrival in the engine to the first prompt token computed."""
    prompt_seconds: float = 0.0
    """From the first prompt token computed to the first token sampled."""
    generation_seconds: float = 0.0
    """From the first token sampled to the last."""

    @property
    def rejected_draft_tokens(self) -> int:
        return self.drafted_tokens - self.accepted_tokens - self.ignored_draft_tokens

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first; 0 where there are none."""
        return max(0, self.completion_tokens - 1) / self.generation_seconds if self.generation_seconds > 0 else 0.0


# Events of one request, in order: LoadProgress* PromptProgress* (ReasoningDelta | TextDelta | ToolCall*)* Finished.
# ``choice`` counts from 0 to n-1; each choice ends with its own Finished.


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The model is being loaded for this request. ``fraction`` is 0..1."""

    fraction: float
    instance: str


@dataclass(frozen=True, slots=True)
class LoadDone:
    """The instance is ready; ``seconds`` is what this request waited for the load (0: it was loaded)."""

    instance: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """``done`` of ``total`` prompt tokens are in the KV cache."""

    done: int
    total: int
    choice: int = 0


@dataclass(slots=True, unsafe_hash=True)  # one for every token: freezing would triple what it costs
class ReasoningDelta:
    text: str
    choice: int = 0


@dataclass(slots=True, unsafe_hash=True)  # one for every token: freezing would triple what it costs
class TextDelta:
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True, unsafe_hash=True)
class Echo(TextDelta):
    """The prompt, where the answer has to begin with it."""


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Call number ``index`` (from 0) begins; its name is whole and never empty."""

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the JSON text of call ``index``'s arguments; the pieces joined are that text."""

    index: int
    arguments: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    index: int
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    usage: Usage
    choice: int = 0
    stop: str | None = None
    """The stop string that ended it, where one did."""


GenerationEvent = (
    LoadProgress
    | LoadDone
    | PromptProgress
    | ReasoningDelta
    | TextDelta
    | ToolCallStart
    | ToolCallDelta
    | ToolCallEnd
    | Finished
)


def total_usage(parts: Sequence[Usage]) -> Usage:
    """The usage of a request with several choices: the shared prompt counts once, times are the longest."""
    if not parts:
        return Usage()

    def add(name: str) -> int:
        return sum(getattr(part, name) for part in parts)

    def longest(name: str) -> float:
        return float(max(getattr(part, name) for part in parts))

    return Usage(
        prompt_tokens=parts[0].prompt_tokens,
        cached_tokens=parts[0].cached_tokens,
        completion_tokens=add("completion_tokens"),
        reasoning_tokens=add("reasoning_tokens"),
        drafted_tokens=add("drafted_tokens"),
        accepted_tokens=add("accepted_tokens"),
        ignored_draft_tokens=add("ignored_draft_tokens"),
        queue_seconds=longest("queue_seconds"),
        prompt_seconds=longest("prompt_seconds"),
        generation_seconds=longest("generation_seconds"),
    )
