"""The control socket's routes to the HTTP API's tokens."""

import logging
import time

from aiohttp import web

from lmd.api.control import json_answer, read_body
from lmd.api.services import services_of
from lmd.log import fields
from lmd.protocol import RevokeBody, TokenBody, TokenCreated, TokenRow
from lmd.tokens import Token

logger = logging.getLogger(__name__)


def routes() -> list[web.RouteDef]:
    return [web.get("/tokens", list_tokens), web.post("/tokens", create), web.post("/tokens/revoke", revoke)]


def _row(token: Token) -> TokenRow:
    return TokenRow(
        name=token.name,
        scopes=list(token.scopes),
        created_at=token.created_at,
        expires_at=token.expires_at,
        expired=not token.is_valid(time.time()),
        from_credential=token.from_credential,
    )


async def list_tokens(request: web.Request) -> web.Response:
    return json_answer([_row(token) for token in services_of(request).tokens.rows()])


async def create(request: web.Request) -> web.Response:
    body = await read_body(request, TokenBody)
    services = services_of(request)
    secret, token = services.tokens.create(body.name, body.scopes, body.lifetime)
    logger.info("token '%s' was created (%s)", token.name, ", ".join(token.scopes), extra=fields(TOKEN=token.name))
    return json_answer(TokenCreated(_row(token), secret, services.config.snapshot.settings.server.auth == "on"))


async def revoke(request: web.Request) -> web.Response:
    body = await read_body(request, RevokeBody)
    token = services_of(request).tokens.revoke(body.name)
    logger.info("token '%s' was revoked", token.name, extra=fields(TOKEN=token.name))
    return json_answer(_row(token))
