"""The control socket's types: all that ``lmctl`` knows of the daemon.

HTTP with JSON over a Unix socket. Plain answers are one of these as JSON; long work answers with
``application/x-ndjson``, one `ControlEvent` a line, the last of which is `Done` or `Failure`.

    GET  /status                         → Status
    GET  /models                         → list[ModelRow]
    GET  /instances                      → list[InstanceRow]
    GET  /presets                        → list[PresetRow]
    GET  /presets/{name}[?effective=1]   → PresetDetail
    POST /presets/check                  → list[ProblemRow]      (reads the files anew, changes nothing)
    POST /reload                         → ReloadResult
    POST /load    LoadBody               → ndjson: Progress*, Done(instance) | Failure
                                           with estimate_only: Estimate, and nothing is loaded
    POST /unload  UnloadBody             → list[str]             (ids unloaded)
    GET  /events                         → ndjson: InstanceChanged | PresetsChanged, until closed
    GET  /log[?source=model]             → ndjson: Prompted, Answered*, AnswerEnded of each sequence that begins from
                                           now on, by its number, until closed; Failure where it is read too slowly
    GET  /log?source=server              → ndjson: LogLine*, until closed
    GET  /tokens                         → list[TokenRow]
    POST /tokens           TokenBody     → TokenCreated
    POST /tokens/revoke    RevokeBody    → TokenRow
    GET  /models/{key}                   → ModelDetail
    POST /models/remove    RemoveBody    → Removed
    GET  /hub/search?q=…[&format=][&n=]  → list[HubModel]
    GET  /hub/model?name=…[&format=]     → HubModel              (owner/repo[@quant], or a link)
    GET  /downloads                      → list[DownloadRow]
    POST /downloads        GetBody       → DownloadRow           (one that runs already is joined)
    GET  /downloads/{id}                 → DownloadRow
    POST /downloads/{id}/pause|resume|cancel → DownloadRow
    GET  /downloads/{id}/events          → ndjson: DownloadChanged*, until it rests (done, failed, paused, cancelled)
    GET  /downloads/events               → ndjson: DownloadChanged* of all, until closed
    GET  /chats                          → list[ChatRow]         (conversations kept for /api/v1/chat)
    POST /chats/remove     RemoveChatsBody → list[str]           (ids of the conversations that are gone)
    *    /v1/…                           → the HTTP API's own routes, whatever ``[server]`` says

Errors are `Failure` with a 4xx or 5xx status. Times are Unix seconds, durations seconds, sizes bytes.
Imports nothing but the standard library and msgspec, so that ``lmctl`` starts at once.
"""

import math
import re
from collections.abc import Mapping

from msgspec import Struct


class ProblemRow(Struct, omit_defaults=True):
    file: str
    message: str
    key: str = ""
    line: int = 0
    column: int = 0


class ModelRow(Struct, omit_defaults=True):
    key: str
    path: str
    type: str
    """llm, vlm or embeddings."""
    architecture: str
    quantization: str
    n_params: int
    size: int
    context_length: int
    parts: int = 1
    mmproj: str | None = None
    has_template: bool = False
    loaded: list[str] = []
    presets: list[str] = []
    format: str = "gguf"
    """gguf, or mlx, which is kept and listed but served by no engine of this build."""
    publisher: str = ""
    error: str | None = None
    """Why the file cannot be served; then only key, path and size mean anything."""


class MemoryRow(Struct):
    """What serving with ``context_length`` tokens for each of ``parallel`` sequences is expected to take, in bytes."""

    context_length: int
    parallel: int
    total: int
    fits: str
    """yes, unloading (once other models have left) or no."""


class ModelDetail(Struct, omit_defaults=True):
    model: ModelRow
    files: list[str]
    capabilities: list[str] = []
    """chat, tool_use, reasoning, vision, embeddings."""
    header: dict[str, object] = {}
    """Metadata by key, without long arrays."""
    template: str | None = None
    memory: list[MemoryRow] = []


class RemoveBody(Struct, omit_defaults=True):
    model: str
    force: bool = False
    """Also while it is loaded: its instances are unloaded first."""
    dry_run: bool = False


class Removed(Struct, omit_defaults=True):
    model: str
    files: list[str]
    freed: int
    kept: list[str] = []
    """Files of the model that another one needs as well."""
    loaded: list[str] = []
    """Instances that stood (or with ``dry_run`` stand) in the way."""


# ── stored conversations ──────────────────────────────────────────────────────────────────────


class ChatRow(Struct, omit_defaults=True):
    id: str
    """Of its first response."""
    title: str
    """The beginning of its first message."""
    model: str
    responses: int
    size: int
    created_at: float
    used_at: float


class RemoveChatsBody(Struct, omit_defaults=True):
    """Conversations by the id of any of their responses, or all of them."""

    ids: list[str] = []
    all: bool = False


# ── the hub and its downloads ─────────────────────────────────────────────────────────────────


class HubVariant(Struct, omit_defaults=True):
    """What can be fetched of a repository as one: a quantization, or all of an MLX repository."""

    quantization: str
    size: int
    """Of all its files, the vision part with them."""
    fits: str
    """yes, unloading (once other models have left) or no."""
    files: list[str] = []
    on_disk: bool = False


class HubModel(Struct, omit_defaults=True):
    name: str
    """owner/repo."""
    format: str
    variants: list[HubVariant]
    proposed: str = ""
    """The quantization to take where nobody says; "" where none fits."""
    chosen: str = ""
    """The quantization that the name itself asked for."""
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    updated_at: float = 0.0


class GetBody(Struct, omit_defaults=True):
    model: str
    """owner/repo, owner/repo@quant, or a link to a repository, a directory or a file."""
    quantization: str | None = None
    format: str | None = None
    """gguf or mlx, where a repository has both."""


class DownloadFile(Struct, omit_defaults=True):
    path: str
    size: int
    received: int = 0


class DownloadRow(Struct, omit_defaults=True):
    id: str
    model: str
    """owner/repo."""
    quantization: str
    state: str
    """queued, downloading, waiting (to try again), verifying, paused, completed, failed or cancelled."""
    size: int
    received: int = 0
    rate: float = 0.0
    """Bytes per second over the last seconds."""
    eta: float | None = None
    """Seconds."""
    files: list[DownloadFile] = []
    directory: str = ""
    format: str = "gguf"
    key: str = ""
    """The model key that it is served under, once completed."""
    created_at: float = 0.0
    finished_at: float = 0.0
    retry_in: float | None = None
    note: str = ""
    """Why it waits."""
    error: str | None = None
    code: str = ""
    hint: str | None = None
    already: bool = False
    """All of it was on disk before it was asked for."""


class InstanceRow(Struct, omit_defaults=True):
    id: str
    model: str
    state: str
    """starting, loading, ready, draining, dead or backoff."""
    pid: int = 0
    progress: float = 1.0
    leases: int = 0
    queued: int = 0
    running: int = 0
    context_length: int = 0
    parallel: int = 0
    kv_cells: int = 0
    kv_used: int = 0
    memory: int = 0
    gpu_layers: int = 0
    batch: int = 0
    """Tokens of one step."""
    flash_attention: bool = False
    decode_tps: float = 0.0
    prompt_tps: float = 0.0
    prompt_tokens: int = 0
    """Of all prompts since it was loaded."""
    cached_tokens: int = 0
    """Of these, those that were in the cache and not computed."""
    ttl: float | None = None
    """None: never expires."""
    expires_in: float | None = None
    """Seconds left; None while in use or pinned."""
    pinned: bool = False
    stale: bool = False
    """Loaded with settings that have been edited since."""
    loaded_at: float = 0.0
    last_used_at: float = 0.0
    error: str | None = None
    deaths: int = 0
    retry_in: float | None = None


class PresetRow(Struct, omit_defaults=True):
    name: str
    file: str
    model: str
    description: str = ""
    aliases: list[str] = []
    loaded: list[str] = []
    problems: list[ProblemRow] = []
    """Not empty: the file on disk is wrong and the last good version (if any) is served."""
    serving: bool = True


class PresetDetail(Struct, omit_defaults=True):
    name: str
    file: str
    text: str
    """The file as it is on disk."""
    effective: dict[str, object] = {}
    """With ``?effective=1``: every setting with ``extends`` and the defaults applied."""
    origin: dict[str, str] = {}
    """With ``?effective=1``: dotted key → the file or layer it came from."""


class Status(Struct, omit_defaults=True):
    version: str
    pid: int
    started_at: float
    state: str
    """starting, serving, draining."""
    url: str
    socket: str
    config_file: str | None
    models: int
    presets: int
    instances: int
    active_requests: int
    requests_served: int
    memory_total: int
    memory_free: int
    memory_used: int
    """By loaded instances, as measured."""
    problems: list[ProblemRow] = []
    model_directories: list[str] = []
    """The first is where downloads and imports go."""
    runtime: dict[str, str] = {}
    """llama_cpp_python, llama_cpp, system_info; empty until a worker has said hello."""


class ReloadResult(Struct, omit_defaults=True):
    changed: list[str]
    problems: list[ProblemRow] = []


class LoadBody(Struct, omit_defaults=True):
    model: str
    ttl: float | None = None
    """Seconds; None: never expires."""
    identifier: str | None = None
    load: dict[str, object] = {}
    """Keys of a preset's ``[load]``; checked by the daemon."""
    reload: bool = False
    """Replace an instance that already runs by one with the current settings."""
    estimate_only: bool = False


class Estimate(Struct):
    """What a load is expected to take, and what there is, in bytes."""

    weights: int
    kv: int
    compute: int
    draft: int
    total: int
    least: int
    """With which it could serve, where memory is short."""
    free: int
    capacity: int
    """Free once every other model has left."""


class UnloadBody(Struct, omit_defaults=True):
    id: str | None = None
    all: bool = False
    force: bool = False


# ── tokens of the HTTP API ────────────────────────────────────────────────────────────────────


class TokenRow(Struct, omit_defaults=True):
    name: str
    scopes: list[str]
    created_at: float = 0.0
    expires_at: float | None = None
    expired: bool = False
    from_credential: bool = False
    """It comes from the service manager's credential, and cannot be revoked here."""


class TokenBody(Struct, omit_defaults=True):
    name: str
    scopes: list[str]
    """inference, manage."""
    lifetime: float | None = None
    """Seconds; None: it never expires."""


class TokenCreated(Struct, omit_defaults=True):
    token: TokenRow
    secret: str
    """Told this once."""
    auth: bool = True
    """False: no request is asked for a token, as the settings are."""


class RevokeBody(Struct):
    name: str


class Progress(Struct, tag="progress", tag_field="type"):
    fraction: float
    note: str = ""


class Done(Struct, tag="done", tag_field="type", omit_defaults=True):
    instance: InstanceRow | None = None
    seconds: float = 0.0
    already: bool = False
    """It was loaded before this command."""


class Failure(Struct, tag="error", tag_field="type", omit_defaults=True):
    code: str
    message: str
    hint: str | None = None
    problems: list[ProblemRow] = []


class InstanceChanged(Struct, tag="instance", tag_field="type"):
    instance: InstanceRow
    gone: bool = False


class PresetsChanged(Struct, tag="presets", tag_field="type"):
    changed: list[str]
    problems: list[ProblemRow] = []


class DownloadChanged(Struct, tag="download", tag_field="type"):
    download: DownloadRow


class Prompted(Struct, tag="prompt", tag_field="type"):
    """A sequence begins. ``text`` is its whole prompt as the model's template wrote it."""

    sequence: int
    """Counts what is watched; `Answered` and `AnswerEnded` refer to it."""
    at: float
    text: str
    model: str
    """The name that was asked for, made canonical."""
    instance: str
    request: str = ""
    """Id of the HTTP request (X-Request-Id)."""
    choice: int = 0


class Answered(Struct, tag="answer", tag_field="type"):
    """More of what the model wrote, before anything was made of it."""

    sequence: int
    text: str


class AnswerEnded(Struct, tag="end", tag_field="type", omit_defaults=True):
    sequence: int
    at: float
    reason: str
    """eog, stop, length, context, … as the engine has it; cancelled or error."""
    stop: str | None = None
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    tokens_per_second: float = 0.0


class LogLine(Struct, tag="log", tag_field="type", omit_defaults=True):
    """A record of the daemon's own log."""

    at: float
    level: str
    """debug, info, warning, error or critical."""
    logger: str
    message: str
    fields: dict[str, str] = {}


ControlEvent = (
    Progress
    | Done
    | Failure
    | InstanceChanged
    | PresetsChanged
    | DownloadChanged
    | Prompted
    | Answered
    | AnswerEnded
    | LogLine
)

# ── notations and places that the daemon and lmctl share ──────────────────────────────────────

MAX_DURATION = 100 * 366 * 86400.0
"""Seconds. What is meant to be longer is "never"."""

_DURATION_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"(\d{1,12}(?:\.\d{1,12})?)"
_DURATION = re.compile(r"\s*".join(rf"(?:{_NUMBER}\s*{unit})?" for unit in _DURATION_UNITS), re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds in ``300``, ``90s``, ``1h30m``, ``250ms``, ``0``, or ``never`` (inf). Raises ValueError."""
    text = text.strip().lower()
    if text == "never":
        return math.inf
    seconds = -1.0
    if re.fullmatch(_NUMBER, text, re.ASCII):
        seconds = float(text)
    elif text and (match := _DURATION.fullmatch(text)):
        seconds = sum(float(n) * unit for n, unit in zip(match.groups(), _DURATION_UNITS.values(), strict=True) if n)
    if seconds < 0:
        raise ValueError('expected a duration such as 90s, 5m, 1h30m, a number of seconds, or "never"')
    if seconds > MAX_DURATION:
        raise ValueError('this duration is beyond 100 years; say "never"')
    return seconds


def format_duration(seconds: float) -> str:
    """``1h30m``, ``90ms``, ``0``, ``never``. `parse_duration` gives ``seconds`` back, to the nanosecond."""
    if math.isinf(seconds):
        return "never"
    nanoseconds = round(seconds * 1e9)
    if nanoseconds % 1_000_000_000:
        return f"{nanoseconds / 1e9:.9f}".rstrip("0") + "s"
    rest, parts = nanoseconds // 1_000_000_000, ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        n, rest = divmod(rest, size)
        parts += f"{n}{unit}" if n else ""
    return parts or "0"


def default_sockets(environ: Mapping[str, str], uid: int) -> tuple[str, ...]:
    """Where a daemon's control socket is by default, the likeliest first; the daemon of ``uid`` takes the first.

    systemd's RUNTIME_DIRECTORY, then /run/lmd (for root first, for others last), then the user's runtime
    directory, or where there is none the user's state directory (never /tmp, where anyone could sit in our place).
    """
    home = environ.get("HOME") or "/"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    state = environ.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):
        state = f"{home.rstrip('/')}/.local/state"
    places = [f"{runtime if runtime.startswith('/') else state}/lmd/lmd.sock"]
    places.insert(0 if uid == 0 else 1, "/run/lmd/lmd.sock")
    if given := environ.get("RUNTIME_DIRECTORY", "").split(":")[0]:
        places.insert(0, f"{given}/lmd.sock")
    return tuple(dict.fromkeys(places))
