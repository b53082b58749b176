"""The daemon's settings: every section, key, bound and default. `lmd.config.layers` reads them."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from lmd.config.units import Duration, Size
from lmd.generation import SamplingParams
from lmd.loading import LoadParams

MiB = 1024**2

#: sockaddr_un.sun_path holds 108 bytes, one of them the final zero.
MAX_SOCKET_PATH = 107


def _format_mode(mode: int) -> str:
    return f"{mode:04o}"


def _read_mode(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"(0o?)?[0-7]{3}", value):
        return int(value.removeprefix("0o"), 8)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o777:
        return value
    raise ValueError('expected a file mode in octal, such as "0660"')


def _check_socket(path: Path) -> Path:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ValueError(f"a Unix socket's path has at most {MAX_SOCKET_PATH} bytes")
    return path


def _check_host(host: str) -> str:
    if not re.fullmatch(r"[\w.:%-]{1,253}", host):
        raise ValueError("expected an address or a host name, without scheme and port")
    return host


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+", origin):
        raise ValueError('expected an origin such as "https://app.example:8443", or "*"')
    return origin


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Server(Section):
    host: Annotated[str, AfterValidator(_check_host)] = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535)] = 1234
    """0: any free port, told in the ready line."""
    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = ()
    allowed_hosts: tuple[Annotated[str, AfterValidator(_check_host)], ...] = ()
    """Names that a request's Host header may have beside localhost and the bound address."""
    max_body: Annotated[Size, Ge(1024)] = 64 * MiB
    """Bytes."""
    drain_timeout: Duration = 30.0
    """Seconds that open answers get to end after a stop was asked for."""
    management: Literal["local"] | bool = "local"
    """Whether models may be loaded, unloaded and fetched over HTTP. "local": from this machine's loopback only."""
    auth: Literal["off", "on"] = "off"
    """"on": every HTTP request needs a token (`lmctl token create`)."""
    allow_insecure: bool = False
    """Serve on an address that others can reach although ``auth`` is off."""


class Service(Section):
    """What concerns the process itself."""

    idle_exit: Annotated[Duration, Ge(1)] = math.inf
    """Seconds without a model in memory, a request or a download after which lmd leaves, if systemd's lmd.socket
    would start it again; ``inf``: never."""


class Limits(Section):
    """What one client, and all together, may ask of the HTTP port. 0: no limit."""

    requests: Annotated[int, Ge(0)] = 1024
    """Open at once."""
    requests_per_client: Annotated[int, Ge(0)] = 256
    """Of one token, or where auth is off of one address."""
    messages: Annotated[int, Ge(0)] = 10_000
    tools: Annotated[int, Ge(0)] = 512
    schema_size: Size = MiB
    """Bytes of one JSON schema or grammar."""
    text_size: Size = 16 * MiB
    """Bytes of one text of a message or prompt."""
    header_size: Annotated[Size, Ge(1024)] = 16 * 1024
    """Bytes of the request line and of each header."""
    receive_timeout: Duration = 75.0
    """Seconds that a client gets to send a whole request."""
    stall_timeout: Duration = 60.0
    """Seconds that a client may take nothing of its answer."""


class Control(Section):
    socket: Annotated[Path, AfterValidator(_check_socket)] = Path("/run/lmd/lmd.sock")
    mode: Annotated[int, BeforeValidator(_read_mode), PlainSerializer(_format_mode, return_type=str)] = 0o660
    group: str = ""
    """Group of the socket; empty: the daemon's own."""


class Paths(Section):
    models: tuple[Path, ...] = (Path("/var/lib/lmd/models"),)
    presets: Path = Path("/etc/lmd/presets.d")
    state: Path = Path("/var/lib/lmd")
    cache: Path = Path("/var/cache/lmd")


class Models(Section):
    jit: bool = True
    """Load a model on the first request that names it."""
    ttl: Duration = 3600.0
    """Idle seconds after which a model loaded by a request leaves; ``inf``: never."""
    max_loaded: Annotated[int, Ge(0)] = 0
    """0: no limit."""
    memory_limit: Literal["auto"] | Size = "auto"
    """Bytes that all instances together may take; "auto": what is free."""
    eviction: Literal["fit", "last"] = "fit"
    """What leaves for a new model. "fit": the least recently used until it fits; "last": all that requests loaded."""
    standby: bool = True
    """Keep a worker ready that has llama.cpp in memory already."""
    parked: Annotated[int, Ge(0)] = 1
    """Workers of models that made room for another which may keep the vocabulary, so that the way back is short."""
    prompt_cache: Size = 2**30
    """Bytes of RAM in which each instance may keep prefixes that left its KV cache; 0: none."""
    load_timeout: Duration = 600.0
    queue_timeout: Duration = 300.0
    """Seconds that a request waits for memory or a sequence."""


class Conversations(Section):
    """Answers that requests may continue by their id."""

    max_age: Duration = 30 * 86400.0
    """Seconds since it was last added to, after which a conversation is forgotten; 0: none is stored."""
    max_size: Size = 256 * MiB
    """Bytes of all of them, of which the longest unused are forgotten first; 0: none is stored."""


class Defaults(Section):
    load: LoadParams = LoadParams()
    sampling: SamplingParams = SamplingParams()


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "journal", "console", "plain", "json"] = "auto"


class Settings(BaseSettings):
    """All settings, checked. Immutable. ``Settings()`` is the defaults of a root daemon, whatever the environment."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    daemon: Service = Service()
    server: Server = Server()
    limits: Limits = Limits()
    control: Control = Control()
    paths: Paths = Paths()
    models: Models = Models()
    conversations: Conversations = Conversations()
    defaults: Defaults = Defaults()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
