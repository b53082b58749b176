"""Who may do what over HTTP: tokens, and how many requests a client may have open."""

from collections import Counter
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from lmd.api.activity import current_record
from lmd.config.settings import Limits
from lmd.errors import Overloaded, Unauthorized
from lmd.tokens import Token, Tokens

TOKEN: web.RequestKey[Token] = web.RequestKey("token", Token)
"""Whose request it is, where tokens are asked for."""

OPEN_PATHS = frozenset({"/health", "/lmstudio-greeting"})
"""Asked by those who have no token yet: health checks, and clients that look for a server. They tell only that lmd is
there."""

_MANAGING = ("/api/v1/models/",)
"""What loads, unloads and fetches; reading needs no more than inference."""


def scope_of(method: str, path: str) -> str:
    """The scope that a request needs."""
    return "manage" if method not in {"GET", "HEAD"} and path.startswith(_MANAGING) else "inference"


def secret_of(request: web.Request) -> str | None:
    """The token that a request brings: ``Authorization: Bearer`` (OpenAI's), else ``x-api-key`` (Anthropic's)."""
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("x-api-key", "").strip() or None


def authentication(tokens: Tokens, needed: Callable[[], bool]) -> Middleware:
    """Lets nobody pass without a token while ``needed`` says so."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if needed() and request.path not in OPEN_PATHS:
            secret = secret_of(request)
            if secret is None:
                raise Unauthorized(
                    "This server asks for a token.",
                    hint="Send 'Authorization: Bearer TOKEN'; 'lmctl token create NAME' makes one.",
                )
            token = tokens.check(secret, scope_of(request.method, request.path))
            request[TOKEN] = token
            if (record := current_record()) is not None:
                record.token = token.name
        return await handler(request)

    return middleware


def open_requests(limits: Callable[[], Limits]) -> Middleware:
    """429 for what is beyond the limits, before its body is read."""
    by_client: Counter[str] = Counter()

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        token = request.get(TOKEN)
        client = f"token {token.name}" if token is not None else request.remote or "-"
        allowed = limits()
        if allowed.requests and by_client.total() >= allowed.requests:
            raise Overloaded(
                f"{allowed.requests} requests are open, and no more are taken.",
                hint="[limits] requests says how many may be.",
            )
        if allowed.requests_per_client and by_client[client] >= allowed.requests_per_client:
            raise Overloaded(
                f"This client has {allowed.requests_per_client} requests open, and may have no more.",
                hint="[limits] requests_per_client says how many it may.",
            )
        by_client[client] += 1
        try:
            return await handler(request)
        finally:
            by_client[client] -= 1
            if not by_client[client]:
                del by_client[client]

    return middleware
