"""Who may manage models over HTTP: ``[server] management``."""

import ipaddress
import socket

from aiohttp import web

from lmd.api.access import TOKEN
from lmd.api.services import services_of
from lmd.errors import Forbidden

_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def require_management(request: web.Request) -> None:
    """Forbidden where this request's sender may not load, unload and fetch. The control socket always may.

    A token with the scope "manage" may from anywhere, one without it from nowhere.
    """
    transport = request.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return
    allowed = services_of(request).config.snapshot.settings.server.management
    if allowed is False:
        raise Forbidden(
            "Managing models over HTTP is switched off ([server] management = false).", hint="Use 'lmctl' instead."
        )
    token = request.get(TOKEN)
    if token is not None:
        if "manage" not in token.scopes:
            raise Forbidden(
                f"The token '{token.name}' may not manage models.",
                hint="Make one with 'lmctl token create NAME --scope inference,manage'.",
            )
        return
    if allowed is not True and not _is_local(request):
        raise Forbidden(
            "Models are managed over HTTP from the machine that lmd runs on only.",
            hint="Use 'lmctl' there, or set [server] management = true.",
        )


def _is_local(request: web.Request) -> bool:
    """From a loopback address, and not passed on by a proxy that stands there."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
