"""Ids of tool calls, in the form that the model's template wants to see them again."""

import secrets
from collections.abc import Container

from lmd.chat.formats import Format

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def new_id(format_: Format, name: str, index: int, taken: Container[str]) -> str:
    """An id that is not in ``taken``. Random, because ids must not repeat over the turns of a conversation."""
    if format_.id_form:
        id_ = format_.id_form.format(name=name, index=index)
        while id_ in taken:
            index += 1
            id_ = format_.id_form.format(name=name, index=index)
        return id_
    size, lead = (9, "") if format_.short_ids else (24, "call_")
    while (id_ := lead + "".join(secrets.choice(_ALPHABET) for _ in range(size))) in taken:
        pass
    return id_
