"""What is stored is found again, branches, and leaves by age and size as whole conversations."""

import sqlite3
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pytest

from lmd import conversations
from lmd.conversations import Conversations, Response, _open
from lmd.errors import DiskFull, LmdError, NotFound
from lmd.generation import ImagePart, Message, Role, TextPart, ToolCall


@dataclass
class Limits:
    max_age: float = inf
    max_size: int = 10**9


@dataclass
class Rig:
    file: Path
    limits: Limits
    store: Conversations
    time: float = 1000.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    file = tmp_path / "state" / "conversations.db"
    limits = Limits()
    rig = Rig(file, limits, Conversations(file, lambda: limits, lambda: rig.time))
    yield rig
    await rig.store.close()


def said(id: str, parent: str | None = None, ask: str = "", system: str | None = None) -> Response:
    messages = (
        Message(role=Role.USER, parts=(TextPart(ask or f"ask {id}"),)),
        Message(role=Role.ASSISTANT, parts=(TextPart(f"answer {id}"),), reasoning="hm"),
    )
    return Response(id=id, parent=parent, model="tiny", system_prompt=system, messages=messages)


async def texts(rig: Rig, id: str) -> list[str]:
    return [message.text for message in (await rig.store.history(id)).messages]


async def ids(rig: Rig) -> list[str]:
    return [row.id for row in await rig.store.rows()]


async def test_a_response_brings_all_that_it_continues(rig: Rig) -> None:
    for response in (said("a", system="Be brief."), said("b", "a", system="Be brief."), said("c", "b")):
        assert await rig.store.add(response)
    assert await texts(rig, "c") == ["ask a", "answer a", "ask b", "answer b", "ask c", "answer c"]
    assert (await rig.store.history("b")).system_prompt == "Be brief."
    assert (await rig.store.history("c")).system_prompt is None


async def test_one_response_may_be_continued_twice(rig: Rig) -> None:
    for response in (said("a"), said("left", "a"), said("right", "a")):
        await rig.store.add(response)
    assert (await texts(rig, "left"))[2:] == ["ask left", "answer left"]
    assert (await texts(rig, "right"))[2:] == ["ask right", "answer right"]
    (row,) = await rig.store.rows()
    assert (row.id, row.responses, row.title, row.model) == ("a", 3, "ask a", "tiny")


async def test_everything_of_a_message_comes_back(rig: Rig) -> None:
    messages = (
        Message(role=Role.USER, parts=(TextPart("look"), ImagePart(b"\x00\xff", "image/png")), name="me"),
        Message(role=Role.ASSISTANT, tool_calls=(ToolCall(id="1", name="f", arguments='{"a": 1}'),), reasoning="so"),
        Message(role=Role.TOOL, parts=(TextPart("done"),), tool_call_id="1"),
    )
    await rig.store.add(Response(id="a", parent=None, model="m", system_prompt=None, messages=messages))
    assert (await rig.store.history("a")).messages == messages


async def test_it_survives_a_restart(rig: Rig) -> None:
    await rig.store.add(said("a"))
    await rig.store.close()
    rig.store = Conversations(rig.file, lambda: rig.limits, lambda: rig.time)
    assert await texts(rig, "a") == ["ask a", "answer a"]


async def test_only_its_owner_may_read_the_file(rig: Rig) -> None:
    await rig.store.add(said("a"))
    for file in rig.file.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_an_unknown_response_is_not_found(rig: Rig) -> None:
    with pytest.raises(NotFound, match="resp_x"):
        await rig.store.history("resp_x")


async def test_a_response_whose_parent_has_left_is_not_stored(rig: Rig) -> None:
    assert not await rig.store.add(said("b", "gone"))
    assert await ids(rig) == []


async def test_a_conversation_leaves_when_it_has_not_been_added_to_for_long(rig: Rig) -> None:
    rig.limits.max_age = 100
    await rig.store.add(said("old"))
    await rig.store.add(said("kept"))
    rig.time += 60
    await rig.store.add(said("more", "kept"))
    rig.time += 60
    assert await ids(rig) == ["kept"]
    assert await texts(rig, "more") == ["ask kept", "answer kept", "ask more", "answer more"]
    with pytest.raises(NotFound):
        await rig.store.history("old")


async def test_the_longest_unused_conversations_leave_for_a_new_one(rig: Rig) -> None:
    for id in ("a", "b", "c"):
        rig.time += 1
        await rig.store.add(said(id, ask="x" * 1000))
    rig.time += 1
    await rig.store.add(said("a2", "a"))
    rig.limits.max_size = 2500
    assert await ids(rig) == ["a", "c"]


async def test_a_conversation_too_large_by_itself_keeps_the_path_to_its_newest_response(rig: Rig) -> None:
    await rig.store.add(said("a", ask="x" * 1000))
    await rig.store.add(said("left", "a", ask="x" * 1000))
    rig.limits.max_size = 2500
    await rig.store.add(said("right", "a", ask="x" * 1000))
    assert len(await texts(rig, "right")) == 4
    with pytest.raises(NotFound):
        await rig.store.history("left")


@pytest.mark.parametrize("limits", [Limits(max_age=0), Limits(max_size=0)])
async def test_a_limit_of_zero_stores_nothing(rig: Rig, limits: Limits) -> None:
    rig.limits = limits
    rig.store = Conversations(rig.file, lambda: limits, lambda: rig.time)
    assert not await rig.store.add(said("a"))
    assert not rig.file.exists()


async def test_a_conversation_is_removed_by_any_of_its_responses(rig: Rig) -> None:
    for response in (said("a"), said("a2", "a"), said("b")):
        await rig.store.add(response)
    with pytest.raises(NotFound):
        await rig.store.remove(["a2", "nothing"])
    assert sorted(await ids(rig)) == ["a", "b"]
    assert await rig.store.remove(["a2", "a"]) == ["a"]
    assert await ids(rig) == ["b"]
    assert await rig.store.remove_all() == ["b"]


async def test_what_was_removed_is_no_more_in_the_file(rig: Rig) -> None:
    await rig.store.add(said("a", ask="a very secret word"))
    await rig.store.remove_all()
    await rig.store.close()
    assert all(b"very secret" not in file.read_bytes() for file in rig.file.parent.iterdir())


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
async def test_a_file_that_cannot_be_used_says_what_to_do(rig: Rig, content: bytes | None) -> None:
    rig.file.parent.mkdir()
    if content is None:
        with sqlite3.connect(rig.file) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        rig.file.write_bytes(content)
    with pytest.raises(LmdError, match="moved away"):
        await rig.store.add(said("a"))


async def test_a_full_disk_is_told_as_such_and_what_is_stored_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await rig.store.add(said("a"))
    await rig.store.close()

    def open_with_little_room(file: Path) -> sqlite3.Connection:
        db = _open(file)
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(conversations, "_open", open_with_little_room)
    store = Conversations(rig.file, lambda: rig.limits)
    with pytest.raises(DiskFull, match="no room"):
        await store.add(said("b", ask="x" * 100_000))
    assert [row.id for row in await store.rows()] == ["a"]
    await store.close()
