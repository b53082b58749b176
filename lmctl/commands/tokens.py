"""``lmctl token``: who may use the HTTP API."""

import time
from math import isinf

from lmctl.errors import UsageError
from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_table
from lmctl.text import duration
from lmd.protocol import RevokeBody, TokenBody, TokenCreated, TokenRow, parse_duration

COLUMNS = (
    Column("TOKEN"),
    Column("SCOPES", keep=8),
    Column("CREATED", keep=5, align="right"),
    Column("EXPIRES", keep=7, align="right"),
)


def create_token(common: Common, name: str, scopes: str, expires: str) -> None:
    try:
        lifetime = parse_duration(expires)
    except ValueError as exc:
        raise UsageError(f"--expires '{expires}': {exc}") from exc
    body = TokenBody(name, [scope.strip() for scope in scopes.split(",")], None if isinf(lifetime) else lifetime)
    created = common.client().post("/tokens", body, TokenCreated)
    if common.json:
        print_json(created)
        return
    print(created.secret)  # alone on standard output: TOKEN=$(lmctl token create …)
    note("Keep it now: it is not shown again. Clients send it as 'Authorization: Bearer …' (their API key).")
    if not created.auth:
        note('Requests are not asked for tokens yet: set [server] auth = "on" in lmd.toml.')


def list_tokens(common: Common) -> None:
    rows = common.client().get("/tokens", list[TokenRow])
    if common.json:
        print_json(rows)
    elif rows:
        print_table(COLUMNS, [cells(row, time.time()) for row in rows])
    else:
        note("There are no tokens. 'lmctl token create NAME' makes one.")


def cells(row: TokenRow, now: float) -> list[str]:
    created = "credential" if row.from_credential else f"{duration(max(0.0, now - row.created_at))} ago"
    left = None if row.expires_at is None else row.expires_at - now
    return [row.name, ", ".join(row.scopes), created, "expired" if row.expired else duration(left)]


def revoke_token(common: Common, name: str) -> None:
    revoked = common.client().post("/tokens/revoke", RevokeBody(name), TokenRow)
    if common.json:
        print_json(revoked)
    else:
        print(f"revoked {revoked.name}")
