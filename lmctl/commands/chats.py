"""``lmctl chats``: the conversations that the daemon keeps."""

import time
from collections.abc import Sequence

from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_table
from lmctl.text import duration, one_line, size
from lmd.protocol import ChatRow, RemoveChatsBody

COLUMNS = (
    Column("ID"),
    Column("BEGINS WITH", keep=5),
    Column("MODEL", keep=4),
    Column("ANSWERS", keep=3, align="right"),
    Column("SIZE", keep=2, align="right"),
    Column("USED", keep=6, align="right"),
)


def list_chats(common: Common) -> None:
    rows = common.client().get("/chats", list[ChatRow])
    if common.json:
        print_json(rows)
    elif not rows:
        note("No conversations are kept. Requests to /api/v1/chat make them.")
    else:
        print_table(COLUMNS, [cells(row) for row in rows])


def cells(row: ChatRow) -> list[str]:
    used = f"{duration(max(0.0, time.time() - row.used_at))} ago"
    return [row.id, one_line(row.title), row.model, str(row.responses), size(row.size), used]


def remove_chats(common: Common, ids: Sequence[str], *, all_: bool) -> None:
    removed = common.client().post("/chats/remove", RemoveChatsBody(list(ids), all_), list[str])
    if common.json:
        print_json(removed)
    elif not removed:
        note("No conversations are kept.")
    else:
        for id in removed:
            print(f"removed {id}")
