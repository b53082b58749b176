"""The whole vocabulary between the daemon and a worker.

Frames are a 4-byte little-endian length and that many bytes of msgpack, over a socketpair, both ways
(`lmd.worker.channel`). Structs are arrays on the wire, tagged by class; both ends are always of the same
version, so there is no negotiation.

A worker says `Hello` once it can take a `Load`; then any number of `Progress` and one of `Loaded` or `LoadFailed`.
After `Loaded` it takes `Generate`, `Embed`, `Rerank`, `Cancel`, `Tokenize`, `Detokenize`, `ShareCores` at any time.
Every `Generate` is answered by one `Finished` or one `Failed`, every `Embed` and `Rerank` by one `Embedded` or
`Failed`, every `Tokenize` and `Detokenize` by one `Tokens`, `Text` or `Failed`.
`Park`, when nothing is open, is answered by `Parked`: the worker then waits for `Load` as after `Hello`, but only of
what it had. A closed socket, either way, ends the worker.
"""

from msgspec import Struct

from lmd.generation import FinishReason, SamplingParams, TokenLogprob, Usage
from lmd.loading import LoadedModel, LoadParams, WorkerFacts

# ── daemon → worker ───────────────────────────────────────────────────────────────────────────


class Load(Struct, tag="load", array_like=True, frozen=True):
    """Load the model at ``path`` (the first part of a split one). The same again after `Park`."""

    path: str
    params: LoadParams
    draft_path: str | None = None
    """The draft model's file; ``params.draft_model`` names it only for people."""
    free_memory: int = 0
    """Bytes of RAM that this load may take; 0: no limit known. The worker shrinks what was not asked for to fit."""
    free_vram: int = 0
    """Bytes that it may take of the devices' memory; 0: what is free there."""
    encodes: bool = False
    """It turns texts into vectors or scores, and generates nothing."""
    prompt_cache: int = 0
    """Bytes of RAM in which the worker may keep prefixes that left the KV cache; 0: none."""


class PromptText(Struct, tag="text", array_like=True, frozen=True):
    """A stretch of prompt. ``special``: texts of control tokens in it become those tokens."""

    text: str
    special: bool = True


class PromptTokens(Struct, tag="tokens", array_like=True, frozen=True):
    tokens: list[int]


class Constraint(Struct, array_like=True, frozen=True):
    """What the generated text must be.

    ``triggers``: when not empty, generation is free until the text just generated ends with one of these
    strings, and the constraint then applies from the start of that string (lazy); else it applies from the first token.
    ``kind`` says how to read ``source``: "json_schema" (JSON text), "lark", "gbnf", "regex".
    """

    kind: str
    source: str
    triggers: list[str] = []


class Generate(Struct, tag="generate", array_like=True, frozen=True):
    """Generate one sequence. ``id`` is unique in the worker's life."""

    id: int
    prompt: list[PromptText | PromptTokens]
    sampling: SamplingParams
    add_special: bool = True
    """Put the vocabulary's BOS first (where it wants one and the prompt does not already start with it)."""
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
    ignore_eos: bool = False
    cache_prompt: bool = True
    preserved: list[str] = []
    """Texts of control tokens that are given as text when generated; other control tokens give none."""
    constraint: Constraint | None = None
    draft: str = "auto"
    """Who guesses ahead: "auto" (what the instance was loaded with, if anything), "off" or "prompt-lookup"."""
    prompt_logprobs: bool = False
    """Tell the prompt's tokens too, with `logprobs` alternatives. None of it is taken from a cache then."""


class Embed(Struct, tag="embed", array_like=True, frozen=True):
    """Turn texts into vectors of length 1. Texts get the vocabulary's special tokens around them, token ids none."""

    id: int
    texts: list[PromptText | PromptTokens]
    dimensions: int | None = None
    """Keep only so many components (and make the length 1 again); None: all."""


class Rerank(Struct, tag="rerank", array_like=True, frozen=True):
    """Say how well each document answers the query: one score each, higher is better, as the model's head gives it."""

    id: int
    query: str
    documents: list[str]


class Cancel(Struct, tag="cancel", array_like=True, frozen=True):
    """End request ``id`` at the next step. A `Generate` is answered with `Finished` (CANCELLED), an `Embed` or `Rerank`
    with `Failed`. Unknown ids are ignored."""

    id: int


class Tokenize(Struct, tag="tokenize", array_like=True, frozen=True):
    id: int
    prompt: list[PromptText | PromptTokens]
    add_special: bool = True
    pieces: bool = False
    """Tell each token's bytes as well."""


class Detokenize(Struct, tag="detokenize", array_like=True, frozen=True):
    id: int
    tokens: list[int]


class ShareCores(Struct, tag="share_cores", array_like=True, frozen=True):
    """From the next step on, take an equal part of the cores: ``n_busy`` instances compute now, this one among them."""

    n_busy: int


class Park(Struct, tag="park", array_like=True, frozen=True):
    """Free everything but the vocabulary, where `LoadedModel.parks`, and wait to load the same model again."""


ToWorker = Load | Generate | Embed | Rerank | Cancel | Tokenize | Detokenize | ShareCores | Park

# ── worker → daemon ───────────────────────────────────────────────────────────────────────────


class Hello(Struct, tag="hello", array_like=True, frozen=True):
    facts: WorkerFacts


class Progress(Struct, tag="progress", array_like=True, frozen=True):
    """The load's progress, 0..1; never falls."""

    fraction: float


class Loaded(Struct, tag="loaded", array_like=True, frozen=True):
    model: LoadedModel


class LoadFailed(Struct, tag="load_failed", array_like=True, frozen=True):
    """The worker ends itself after this. ``code`` is an `LmdError.code`."""

    code: str
    message: str
    hint: str | None = None
    param: str | None = None


class Parked(Struct, tag="parked", array_like=True, frozen=True):
    """Nothing but the vocabulary is left in memory."""


class Output(Struct, array_like=True, frozen=True):
    """What one step added to one sequence. ``text`` may be empty while a character or a stop string is undecided."""

    id: int
    text: str
    n_tokens: int
    logprobs: list[TokenLogprob] | None = None


class JoinedOutput(Output, array_like=True, frozen=True):
    """What several steps added, joined on the daemon's side while nobody took it; never sent."""

    steps: list[tuple[int, int]] = []
    """Of each step, how long its text is and how many tokens it was."""


class Prefilled(Struct, array_like=True, frozen=True):
    """``done`` of the ``total`` prompt tokens of sequence ``id`` are computed (or came from a cache)."""

    id: int
    done: int
    total: int
    logprobs: list[TokenLogprob] | None = None
    """The prompt's tokens that are known by that, after those told before; a BOS that it did not have is left out."""


class Step(Struct, tag="step", array_like=True, frozen=True):
    """Everything that one engine step has to tell, in one frame. Ends of sequences come after it."""

    outputs: list[Output]
    prefilled: list[Prefilled] = []


class Finished(Struct, tag="finished", array_like=True, frozen=True):
    """Sequence ``id`` ended. ``text``: what was held back and now belongs to the answer."""

    id: int
    reason: FinishReason
    usage: Usage
    text: str = ""
    stop: str | None = None


class Failed(Struct, tag="failed", array_like=True, frozen=True):
    """Request ``id`` cannot be served. ``code`` is an `LmdError.code`; the worker goes on."""

    id: int
    code: str
    message: str
    hint: str | None = None
    param: str | None = None
    n_prompt: int = 0
    n_ctx: int = 0
    """Both set with code ``context_length_exceeded``."""


class Embedded(Struct, tag="embedded", array_like=True, frozen=True):
    """The answer to `Embed` or `Rerank`: one vector (or score) for each text, in order."""

    id: int
    width: int
    """Components of each vector; 1 for scores."""
    data: bytes
    """All vectors one after another: little-endian float32."""
    n_tokens: int
    """Of all texts, special tokens included."""


class Tokens(Struct, tag="token_ids", array_like=True, frozen=True):
    id: int
    tokens: list[int]
    pieces: list[bytes] | None = None
    """The bytes of each token, control tokens written out; set where `Tokenize` asked for them."""


class Text(Struct, tag="detokenized", array_like=True, frozen=True):
    id: int
    text: str


class EngineStats(Struct, tag="stats", array_like=True, frozen=True):
    """Sent when sequences start or end, and about once a second while the engine works."""

    running: int
    queued: int
    kv_used: int
    """Cells of the KV cache that hold something, kept prefixes included."""
    decode_tps: float
    """Tokens generated in the last second of work, all sequences together."""
    prompt_tps: float
    prompt_tokens: int = 0
    """Of all prompts since the load."""
    cached_tokens: int = 0
    """Of these, those that were there already."""


FromWorker = (
    Hello | Progress | Loaded | LoadFailed | Parked | Step | Finished | Failed | Embedded | Tokens | Text | EngineStats
)
