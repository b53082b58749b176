"""Downloads against a hub that speaks the real one's protocol, and fails on demand."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest

from lmd.errors import (
    Conflict,
    DiskFull,
    DownloadNotFound,
    Gated,
    HubError,
    InsufficientMemory,
    InvalidRequest,
    LmdError,
    NotFound,
    Overloaded,
)
from lmd.library.downloads import Downloads
from lmd.library.hub import Hub
from lmd.library.repository import Room
from lmd.library.transfer import Pace
from lmd.protocol import DownloadRow
from tests.hub.fake_hub import Content, FakeHub, Fault

MIB = 1 << 20
FILE = "tiny-Q4_K_M.gguf"
VAST = Room(1 << 40, 1 << 40)
SWIFT = Pace(stall=5.0, first=0.01, longest=0.02, tries=3)
"""Retries at once; stalls only where a test has the hub do so, with less patience then."""


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub().running() as running:
        running.add("owner/tiny-GGUF", {FILE: Content(size=3 * MIB + 17, seed=1)}, downloads=7)
        yield running


Make = Callable[..., Any]


@pytest.fixture
async def make(hub: FakeHub, tmp_path: Path) -> AsyncIterator[Make]:
    """``await make(pace=…, token=…, free=…, room=…)``: the daemon's downloads; a further call is its next run."""
    async with AsyncExitStack() as stack:

        async def one(
            *,
            pace: Pace = SWIFT,
            token: str | None = None,
            free: int | None = None,
            room: Room = VAST,
        ) -> Downloads:
            credentials = tmp_path / "credentials"
            credentials.mkdir(exist_ok=True)
            if token is not None:
                (credentials / "hf_token").write_text(token + "\n")

            async def arrived(files: Sequence[Path]) -> str:
                assert all(file.exists() for file in files)
                return files[-1].stem

            made = Downloads(
                tmp_path / "models",
                tmp_path / "state" / "downloads.json",
                Hub({"HF_ENDPOINT": hub.url, "CREDENTIALS_DIRECTORY": str(credentials)}),
                room=lambda: room,
                arrived=arrived,
                free=None if free is None else lambda _: free,
                pace=pace,
            )
            await made.open()
            stack.push_async_callback(made.close)
            return made

        yield one


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "owner" / "tiny-GGUF" / FILE


async def rested(downloads: Downloads, id: str) -> DownloadRow:
    """The row in which the download rests."""
    async with asyncio.timeout(20):
        *_, last = [row async for row in downloads.subscribe(id)]
    return last


async def received(downloads: Downloads, id: str, least: int) -> None:
    """Wait until so much is on the disk."""
    async with asyncio.timeout(20), aclosing(downloads.subscribe(id)) as rows:
        async for row in rows:
            if row.received >= least:
                return
    raise AssertionError("it rests")


async def fetched(downloads: Downloads, name: str = "owner/tiny-GGUF") -> DownloadRow:
    return await rested(downloads, (await downloads.start(name)).id)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_whole(path: Path, content: Content) -> bool:
    return sha256(path) == content.sha256 and not path.with_name(path.name + ".part").exists()


def tiny(hub: FakeHub) -> Content:
    return hub.repos["owner/tiny-GGUF"].files[FILE]


# ── a good day ──


async def test_a_model_arrives_whole_under_its_publisher_and_repository(hub: FakeHub, make: Make, target: Path) -> None:
    downloads = await make()
    row = await fetched(downloads)
    assert (row.state, row.received, row.size, row.key) == ("completed", 3 * MIB + 17, 3 * MIB + 17, target.stem)
    assert is_whole(target, tiny(hub))
    assert [one.range for one in hub.asked_for(FILE)] == [None]


async def test_nothing_is_visible_before_it_is_complete(hub: FakeHub, make: Make, target: Path) -> None:
    hub.hold = asyncio.Event()
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    await hub.held.wait()
    assert not target.exists()
    hub.hold.set()
    assert (await rested(downloads, row.id)).state == "completed"
    assert target.exists()


async def test_progress_is_told_and_grows(hub: FakeHub, make: Make) -> None:
    hub.rate = 2 * MIB
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    rows = [row async for row in downloads.subscribe(row.id)]
    received = [row.received for row in rows]
    assert received == sorted(received)
    assert len(set(received)) > 2
    assert any(row.rate > 0 and row.eta is not None and row.eta > 0 for row in rows)


async def test_parts_and_the_vision_part_come_along_and_appear_together(
    hub: FakeHub, make: Make, tmp_path: Path
) -> None:
    hub.add(
        "owner/eyes",
        {
            "Q4_K_M/eyes-Q4_K_M-00001-of-00002.gguf": Content(size=MIB, seed=2),
            "Q4_K_M/eyes-Q4_K_M-00002-of-00002.gguf": Content(size=MIB, seed=3),
            "eyes-Q8_0.gguf": Content(size=4 * MIB, seed=4),
            "mmproj-F32.gguf": Content(size=MIB, seed=5),
            "mmproj-F16.gguf": Content(size=MIB, seed=6),
            "README.md": b"hello",
        },
    )
    downloads = await make()
    row = await fetched(downloads, "owner/eyes")
    assert (row.state, row.quantization) == ("completed", "Q4_K_M")
    assert sorted(path.name for path in (tmp_path / "models/owner/eyes").iterdir()) == [
        "eyes-Q4_K_M-00001-of-00002.gguf",
        "eyes-Q4_K_M-00002-of-00002.gguf",
        "mmproj-F16.gguf",
    ]


async def test_all_that_is_on_disk_is_not_fetched_again(hub: FakeHub, make: Make, target: Path) -> None:
    downloads = await make()
    first = await fetched(downloads)
    again = await downloads.start("owner/tiny-GGUF")
    assert (again.id, again.state, again.already) == (first.id, "completed", True)
    assert len(hub.asked_for(FILE)) == 1


async def test_requests_for_one_file_are_one_transfer(hub: FakeHub, make: Make) -> None:
    hub.hold = asyncio.Event()
    downloads = await make()
    rows = await asyncio.gather(*(downloads.start("owner/tiny-GGUF") for _ in range(5)))
    assert len({row.id for row in rows}) == 1
    hub.hold.set()
    await rested(downloads, rows[0].id)
    assert len(hub.asked_for(FILE)) == 1


async def test_two_quantizations_share_the_transfer_of_their_vision_part(
    hub: FakeHub, make: Make, tmp_path: Path
) -> None:
    files = {
        name: Content(size=MIB, seed=i) for i, name in enumerate(["a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-F16.gguf"])
    }
    hub.add("owner/eyes", files)
    hub.hold = asyncio.Event()
    downloads = await make()
    rows = [await downloads.start(f"owner/eyes@{q}") for q in ("q4_0", "q8_0")]
    await hub.held.wait()
    hub.hold.set()
    assert [(await rested(downloads, row.id)).state for row in rows] == ["completed"] * 2
    assert len(hub.asked_for("mmproj-F16.gguf")) == 1
    for name, content in files.items():
        assert is_whole(tmp_path / "models/owner/eyes" / name, content)


async def test_an_mlx_repository_is_fetched_with_its_small_files(hub: FakeHub, make: Make, tmp_path: Path) -> None:
    files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}" * 999,
        "model.safetensors": Content(size=MIB),
        "README.md": b"# no",
        ".gitattributes": b"x",
    }
    hub.add("mlx-community/tiny-4bit", files, tags=("mlx",))
    downloads = await make()
    row = await fetched(downloads, "mlx-community/tiny-4bit")
    assert (row.state, row.format, row.quantization) == ("completed", "mlx", "4BIT")
    assert sorted(path.name for path in (tmp_path / "models/mlx-community/tiny-4bit").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


# ── bad lines ──


async def test_a_cut_connection_goes_on_from_the_last_byte(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.extend([Fault(cut_after=MIB + 3), Fault(cut_after=1000)])
    row = await fetched(await make())
    assert row.state == "completed"
    assert is_whole(target, tiny(hub))
    _, second, third = hub.asked_for(FILE)
    assert second.range == f"bytes={MIB + 3}-"
    assert third.range == f"bytes={MIB + 1003}-"
    assert second.if_range == f'"{tiny(hub).blob}"'


async def test_a_stalled_connection_is_given_up_and_goes_on(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(stall_after=MIB))
    downloads = await make(pace=Pace(stall=0.3, first=0.01, longest=0.02, tries=3))
    assert (await fetched(downloads)).state == "completed"
    assert is_whole(target, tiny(hub))
    assert hub.asked_for(FILE)[1].range == f"bytes={MIB}-"


async def test_a_corrupted_byte_is_found_and_the_file_fetched_anew(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(corrupt_at=2 * MIB))
    assert (await fetched(await make())).state == "completed"
    assert is_whole(target, tiny(hub))
    assert [one.range for one in hub.asked_for(FILE)] == [None, None]


async def test_what_is_corrupt_each_time_is_given_up_and_never_visible(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.extend([Fault(corrupt_at=2 * MIB)] * 9)
    row = await fetched(await make())
    assert (row.state, row.code) == ("failed", "hub_error")
    assert "checksum" in (row.error or "")
    assert not target.exists()
    assert len(hub.asked_for(FILE)) == 3


async def test_a_server_without_ranges_costs_bytes_but_none_that_were_here(
    hub: FakeHub, make: Make, target: Path
) -> None:
    hub.faults.extend([Fault(cut_after=2 * MIB), Fault(ignore_range=True)])
    assert (await fetched(await make())).state == "completed"
    assert is_whole(target, tiny(hub))


@pytest.mark.parametrize(
    "fault", [Fault(wrong_range=True), Fault(encoding="gzip"), Fault(status=503), Fault(status=403), Fault(status=418)]
)
async def test_a_strange_answer_of_the_storage_is_tried_again(
    hub: FakeHub, make: Make, target: Path, fault: Fault
) -> None:
    hub.faults.extend([Fault(cut_after=MIB), fault])
    assert (await fetched(await make())).state == "completed"
    assert is_whole(target, tiny(hub))


async def test_an_end_without_a_length_is_no_end(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(no_length=True, cut_after=MIB))
    assert (await fetched(await make())).state == "completed"
    assert is_whole(target, tiny(hub))


async def test_a_hub_that_asks_for_a_pause_gets_it(hub: FakeHub, make: Make) -> None:
    hub.resolve_faults.append(Fault(status=429, headers={"Retry-After": "1"}))
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    rows = [row async for row in downloads.subscribe(row.id)]
    waiting = next(row for row in rows if row.state == "waiting")
    assert waiting.retry_in is not None and 0 < waiting.retry_in <= 1
    assert "pause" in waiting.note
    assert rows[-1].state == "completed"


async def test_a_hub_that_stays_down_ends_the_download_and_resume_goes_on(
    hub: FakeHub, make: Make, target: Path
) -> None:
    hub.faults.extend([Fault(cut_after=MIB), *[Fault(status=500)] * 4])
    downloads = await make()
    row = await fetched(downloads)
    assert (row.state, row.received) == ("failed", MIB)
    assert "500" in (row.error or "")
    hub.faults.clear()
    await downloads.resume(row.id)
    assert (await rested(downloads, row.id)).state == "completed"
    assert is_whole(target, tiny(hub))
    assert hub.asked_for(FILE)[-1].range == f"bytes={MIB}-"


async def test_a_file_that_changed_meanwhile_is_told_and_never_mixed(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(cut_after=MIB))
    hub.hold = asyncio.Event()
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    await hub.held.wait()
    hub.repos["owner/tiny-GGUF"].files[FILE] = Content(size=3 * MIB + 17, seed=99)
    hub.hold.set()
    row = await rested(downloads, row.id)
    assert row.state == "failed"
    assert "changed" in (row.error or "") and "lmctl get" in (row.hint or "")
    assert not target.exists()
    # What the hint says, helps.
    assert (await fetched(downloads)).state == "completed"
    assert is_whole(target, tiny(hub))


async def test_a_partial_file_longer_than_the_whole_is_begun_anew(hub: FakeHub, make: Make, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.with_name(FILE + ".part").write_bytes(bytes(4 * MIB))
    assert (await fetched(await make())).state == "completed"
    assert is_whole(target, tiny(hub))


async def test_a_foreign_beginning_is_found_out_by_the_checksum(hub: FakeHub, make: Make, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.with_name(FILE + ".part").write_bytes(bytes(MIB))
    assert (await fetched(await make())).state == "completed"
    assert is_whole(target, tiny(hub))


# ── people ──


async def test_pause_keeps_what_has_come_and_resume_goes_on_there(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(stall_after=2 * MIB))
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    await received(downloads, row.id, MIB)
    paused = await downloads.pause(row.id)
    assert paused.state == "paused"
    part = target.with_name(FILE + ".part")
    kept = part.stat().st_size
    assert 0 < kept <= 2 * MIB
    assert (await downloads.resume(row.id)).state != "paused"
    assert (await rested(downloads, row.id)).state == "completed"
    assert is_whole(target, tiny(hub))
    assert hub.asked_for(FILE)[-1].range == f"bytes={kept}-"


async def test_cancel_removes_what_has_come_and_the_empty_directories(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(stall_after=2 * MIB))
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    await hub.stalled.wait()
    assert (await downloads.cancel(row.id)).state == "cancelled"
    assert not target.parent.parent.exists()
    with pytest.raises(Conflict, match="cancelled"):
        await downloads.resume(row.id)
    assert (await fetched(downloads)).state == "completed"


async def test_cancelling_one_leaves_the_other_its_shared_file(hub: FakeHub, make: Make, tmp_path: Path) -> None:
    files = {
        name: Content(size=MIB, seed=i) for i, name in enumerate(["a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-F16.gguf"])
    }
    hub.add("owner/eyes", files)
    hub.hold = asyncio.Event()
    downloads = await make()
    first, second = [await downloads.start(f"owner/eyes@{q}") for q in ("q4_0", "q8_0")]
    await hub.held.wait()
    await downloads.cancel(first.id)
    hub.hold.set()
    assert (await rested(downloads, second.id)).state == "completed"
    assert len(hub.asked_for("mmproj-F16.gguf")) == 1
    assert is_whole(tmp_path / "models/owner/eyes/mmproj-F16.gguf", files["mmproj-F16.gguf"])


async def test_a_complete_download_takes_no_orders(make: Make) -> None:
    downloads = await make()
    row = await fetched(downloads)
    for order in (downloads.pause, downloads.resume, downloads.cancel):
        with pytest.raises(Conflict, match="complete"):
            await order(row.id)
    with pytest.raises(DownloadNotFound):
        await downloads.pause("nothing")


# ── the next run ──


async def test_the_next_run_goes_on_from_the_bytes_that_are_there(hub: FakeHub, make: Make, target: Path) -> None:
    hub.faults.append(Fault(stall_after=2 * MIB))
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    await received(downloads, row.id, MIB)
    await downloads.close()
    kept = target.with_name(FILE + ".part").stat().st_size
    again = await make()
    assert (await rested(again, row.id)).state == "completed"
    assert is_whole(target, tiny(hub))
    assert hub.asked_for(FILE)[-1].range == f"bytes={kept}-"
    assert kept > 0


async def test_the_next_run_leaves_the_paused_one_paused(hub: FakeHub, make: Make) -> None:
    hub.faults.append(Fault(stall_after=MIB))
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    await hub.stalled.wait()
    await downloads.pause(row.id)
    await downloads.close()
    again = await make()
    assert again.find(row.id).state == "paused"
    await again.resume(row.id)
    assert (await rested(again, row.id)).state == "completed"


@pytest.mark.parametrize("damage", ["", "{", '{"format": 99}', '{"format": 1, "downloads": [{}]}', "\x00" * 100])
async def test_a_damaged_ledger_costs_the_list_and_not_the_daemon(
    hub: FakeHub, make: Make, tmp_path: Path, damage: str
) -> None:
    ledger = tmp_path / "state" / "downloads.json"
    ledger.parent.mkdir()
    ledger.write_text(damage)
    downloads = await make()
    assert downloads.rows() == []
    assert (await fetched(downloads)).state == "completed"


# ── refusals ──


async def refused(downloads: Downloads, name: str) -> LmdError:
    with pytest.raises(LmdError) as caught:
        await downloads.start(name)
    assert caught.value.hint
    return caught.value


async def test_a_repository_that_is_not_there_is_told(make: Make) -> None:
    error = await refused(await make(), "owner/nothing")
    assert isinstance(error, NotFound) and "owner/nothing" in error.message


async def test_a_gated_repository_says_where_to_ask_for_access(hub: FakeHub, make: Make) -> None:
    hub.add("owner/gated", {FILE: Content(size=MIB)}, gated=True)
    row = await fetched(await make(), "owner/gated")
    assert (row.state, row.code) == ("failed", Gated.code)
    assert f"{hub.url}/owner/gated" in (row.hint or "") and "HF_TOKEN" in (row.hint or "")


async def test_a_token_without_access_is_told_apart(hub: FakeHub, make: Make) -> None:
    hub.add("owner/gated", {FILE: Content(size=MIB)}, gated=True)
    hub.granted = False
    row = await fetched(await make(token=hub.token), "owner/gated")
    assert row.code == Gated.code and "has not been granted" in (row.error or "")


async def test_a_token_opens_gated_and_private_ones_and_stays_with_the_hub(hub: FakeHub, make: Make) -> None:
    hub.add("owner/gated", {FILE: Content(size=MIB)}, gated=True, private=True)
    assert (await fetched(await make(token=hub.token), "owner/gated")).state == "completed"
    at = {one.at: one.authorization for one in hub.requests if one.path.endswith(FILE)}
    assert at == {"hub": f"Bearer {hub.token}", "storage": None}


async def test_a_wrong_token_is_told(hub: FakeHub, make: Make) -> None:
    error = await refused(await make(token="hf_wrong"), "owner/tiny-GGUF")
    assert isinstance(error, HubError) and "token" in error.message


async def test_a_hub_with_trouble_is_asked_again(hub: FakeHub, make: Make) -> None:
    hub.api_faults.append(Fault(status=503))
    assert (await fetched(await make())).state == "completed"


async def test_a_long_pause_that_the_hub_asks_for_is_told_instead_of_waited(hub: FakeHub, make: Make) -> None:
    hub.api_faults.append(Fault(status=429, headers={"Retry-After": "300"}))
    error = await refused(await make(), "owner/tiny-GGUF")
    assert isinstance(error, Overloaded) and error.retry_after == 300


async def test_a_hub_that_cannot_be_reached_is_told(hub: FakeHub, make: Make) -> None:
    downloads = await make()
    downloads.hub.endpoint = "http://127.0.0.1:9"
    error = await refused(downloads, "owner/tiny-GGUF")
    assert isinstance(error, HubError) and "127.0.0.1:9" in error.message


async def test_too_little_room_on_the_disk_is_told_before(make: Make) -> None:
    error = await refused(await make(free=257 * MIB), "owner/tiny-GGUF")
    assert isinstance(error, DiskFull) and "owner/tiny-GGUF" in error.message


async def test_a_disk_that_fills_meanwhile_stops_it_and_resume_goes_on(
    hub: FakeHub, make: Make, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    room = 2 * MIB
    real = os.pwrite

    def pwrite(file: int, data: memoryview, at: int) -> int:
        if at + len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr("lmd.library.transfer.os.pwrite", pwrite)
    downloads = await make()
    row = await fetched(downloads)
    assert (row.state, row.code) == ("failed", DiskFull.code)
    assert "lmctl downloads resume" in (row.hint or "")
    room = 1 << 40
    await downloads.resume(row.id)
    assert (await rested(downloads, row.id)).state == "completed"
    assert is_whole(target, tiny(hub))


async def test_a_directory_that_may_not_be_written_is_told(make: Make, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where a directory should be")
    row = await fetched(await make())
    assert row.state == "failed" and str(tmp_path / "models") in (row.error or "")


async def test_where_no_quantization_fits_only_a_named_one_is_fetched(make: Make) -> None:
    downloads = await make(room=Room(MIB, MIB))
    error = await refused(downloads, "owner/tiny-GGUF@")
    assert isinstance(error, InvalidRequest)
    assert (await fetched(downloads, "owner/tiny-GGUF@q4_k_m")).state == "completed"


async def test_none_fits_is_told_with_how_to_have_one_nevertheless(hub: FakeHub, make: Make) -> None:
    hub.add("owner/two", {"a-Q4_K_M.gguf": Content(size=MIB), "a-Q8_0.gguf": Content(size=2 * MIB)})
    error = await refused(await make(room=Room(MIB, MIB)), "owner/two")
    assert isinstance(error, InsufficientMemory) and "owner/two@q4_k_m" in (error.hint or "")


async def test_words_are_no_repository(make: Make) -> None:
    assert isinstance(await refused(await make(), "tiny"), InvalidRequest)


async def test_search_finds_the_most_downloaded_first(hub: FakeHub, make: Make) -> None:
    hub.add("other/tiny-GGUF", {FILE: Content(size=MIB)}, downloads=9)
    hub.add("other/big-GGUF", {FILE: Content(size=MIB)}, downloads=99)
    hub.add("other/tiny-mlx", {"config.json": b"{}", "m.safetensors": b"x"}, downloads=999, tags=("mlx",))
    downloads = await make()
    found = await downloads.hub.search("tiny", "gguf", 10)
    assert [one.name for one in found] == ["other/tiny-GGUF", "owner/tiny-GGUF"]
    assert [one.name for one in await downloads.hub.search("tiny", "mlx", 10)] == ["other/tiny-mlx"]
    assert len(await downloads.hub.search("tiny", "gguf", 1)) == 1


async def test_watchers_end_with_the_daemon(hub: FakeHub, make: Make) -> None:
    hub.faults.append(Fault(stall_after=MIB))
    downloads = await make()
    row = await downloads.start("owner/tiny-GGUF")
    watching = asyncio.ensure_future(rested(downloads, row.id))
    await hub.stalled.wait()
    await downloads.close()
    assert (await watching).state not in ("completed", "failed")
