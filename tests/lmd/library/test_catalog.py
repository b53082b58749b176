import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmd.errors import ModelFileError, ModelNotFound, UnusableModel
from lmd.library import cache
from lmd.library.catalog import Catalog, Refreshed

Put = Callable[..., Path]


def fresh(directory: Path, *more: Path) -> Catalog:
    catalog = Catalog([directory, *more])
    catalog.refresh()
    return catalog


def age(path: Path) -> None:
    """Make ``path`` old enough for its header to be kept."""
    then = time.time() - 60
    os.utime(path, (then, then))


# ── finding ───────────────────────────────────────────────────────────────────────────────────


def test_hidden_and_unfinished_files_are_left_alone(put: Put, tmp_path: Path) -> None:
    for place in (".hidden.gguf", ".cache/a.gguf", "a.gguf.part", "b.gguf.incomplete", "c.gguf.tmp", "readme.md"):
        put(place)
    put("Kept.GGUF")
    catalog = fresh(tmp_path / "models")
    assert list(catalog.models) == ["Kept"]
    assert catalog.broken == ()


def test_symlinks_are_followed_without_loops_and_without_listing_twice(put: Put, tmp_path: Path) -> None:
    real = put("o/r/model.gguf")
    models = tmp_path / "models"
    (models / "a-loop").symlink_to(models)
    (models / "o" / "up").symlink_to("..")
    (models / "a-second-name.gguf").symlink_to(real)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "far.gguf").write_bytes(real.read_bytes())
    (models / "linked").symlink_to(outside)
    (models / "gone.gguf").symlink_to("nowhere.gguf")
    (models / "self").symlink_to("self")
    catalog = fresh(models)
    assert list(catalog.models) == ["far", "o/r"]
    assert [(one.path.name, one.reason) for one in catalog.broken] == [
        ("gone.gguf", "it is a symbolic link that leads nowhere"),
        ("self", "it cannot be read: Too many levels of symbolic links"),
    ]


def test_the_name_of_a_file_that_cannot_be_served_tells_why(put: Put, tmp_path: Path) -> None:
    torn = put("o/r/torn.gguf")
    torn.write_bytes(torn.read_bytes()[:100])
    catalog = fresh(tmp_path / "models")
    for name in ("torn", "TORN.gguf"):
        with pytest.raises(UnusableModel, match=r"'torn\.gguf' is there, but cannot be served: .") as error:
            catalog.find(name)
        assert str(tmp_path) not in error.value.message
    with pytest.raises(ModelNotFound, match="no model named"):
        catalog.find("tor")


def test_what_cannot_be_served_is_named_with_the_reason(
    put: Put, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put("good.gguf")
    put("cut.gguf").write_bytes(put("good.gguf").read_bytes()[:-200])
    put("html.gguf").write_bytes(b"<!DOCTYPE html>")
    os.mkfifo(tmp_path / "models" / "pipe.gguf")
    catalog = fresh(tmp_path / "models")
    assert list(catalog.models) == ["good"]
    told = {one.path.name: one.reason for one in catalog.broken}
    assert "incomplete" in told["cut.gguf"]
    assert "web page" in told["html.gguf"]
    assert "regular file" in told["pipe.gguf"]
    assert len(caplog.records) == 3
    catalog.refresh()
    assert len(caplog.records) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_directory_is_told(put: Put, tmp_path: Path) -> None:
    put("locked/a.gguf").parent.chmod(0)
    (broken,) = fresh(tmp_path / "models").broken
    assert "Permission denied" in broken.reason


def test_a_directory_that_does_not_exist_holds_no_models_and_a_file_is_none(put: Put, tmp_path: Path) -> None:
    assert fresh(tmp_path / "none").broken == ()
    (tmp_path / "file").write_text("")
    (broken,) = fresh(tmp_path / "file").broken
    assert "not a directory" in broken.reason


# ── refreshing ────────────────────────────────────────────────────────────────────────────────


def test_a_refresh_tells_what_changed_and_leaves_the_old_picture_whole(put: Put, tmp_path: Path) -> None:
    put("stays.gguf")
    leaves, changes = put("leaves.gguf"), put("changes.gguf")
    catalog = Catalog([tmp_path / "models"])
    assert catalog.models == {}
    assert catalog.refresh().added == ("changes", "leaves", "stays")
    before = catalog.models
    assert not catalog.refresh()
    leaves.unlink()
    put("changes.gguf", "Q4_K_M", general__name="another")
    put("comes.gguf")
    put("bad.gguf").write_bytes(b"bad")
    assert catalog.refresh() == Refreshed(("comes",), ("leaves",), ("changes",), True)
    assert set(before) == {"stays", "leaves", "changes"}
    assert catalog.find("changes").header.quantization == "Q4_K_M"
    assert changes.exists()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files whose headers are read from the files themselves."""
    seen: list[str] = []
    real = cache.read_header

    def counted(path: Path) -> object:
        seen.append(path.name)
        return real(path)

    monkeypatch.setattr(cache, "read_header", counted)
    return seen


def test_headers_are_read_once_and_kept_between_runs(put: Put, tmp_path: Path, reads: list[str]) -> None:
    age(put("o/r/model.gguf", tokenizer__chat_template="{{ messages }}", x=1.5, y=[1, 2], z=True))
    bad = put("bad.gguf")
    bad.write_bytes(b"bad")
    age(bad)
    file = tmp_path / "cache" / "headers"
    first = Catalog([tmp_path / "models"], file)
    first.refresh()
    first.refresh()
    assert sorted(reads) == ["bad.gguf", "model.gguf"]
    second = Catalog([tmp_path / "models"], file)
    second.refresh()
    assert len(reads) == 2
    assert second.models == first.models
    assert second.broken == first.broken
    assert [path.name for path in file.parent.iterdir()] == ["headers"]


def test_a_changed_file_is_read_anew(put: Put, tmp_path: Path, reads: list[str]) -> None:
    age(put("m.gguf"))
    catalog = Catalog([tmp_path / "models"], tmp_path / "headers")
    catalog.refresh()
    put("m.gguf", "F16")
    catalog.refresh()
    assert reads == ["m.gguf", "m.gguf"]
    assert catalog.models["m"].header.quantization == "F16"


def test_a_file_written_this_moment_is_not_trusted_to_stay(put: Put, tmp_path: Path, reads: list[str]) -> None:
    put("m.gguf")
    catalog = fresh(tmp_path / "models")
    catalog.refresh()
    assert reads == ["m.gguf", "m.gguf"]


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"\x92\x01\x80", b"\x92\x63\x80", b"\xff" * 1000, b"\x91" * 100_000]
)
def test_a_corrupt_cache_is_made_anew(put: Put, tmp_path: Path, content: bytes) -> None:
    age(put("m.gguf"))
    file = tmp_path / "headers"
    file.write_bytes(content)
    catalog = Catalog([tmp_path / "models"], file)
    catalog.refresh()
    assert list(catalog.models) == ["m"]
    assert file.read_bytes() != content


def test_a_cache_that_cannot_be_written_stops_nothing(put: Put, tmp_path: Path) -> None:
    age(put("m.gguf"))
    (tmp_path / "file").write_text("")
    catalog = Catalog([tmp_path / "models"], tmp_path / "file" / "headers")
    catalog.refresh()
    assert list(catalog.models) == ["m"]


# ── files that presets name ───────────────────────────────────────────────────────────────────


def test_a_file_outside_the_directories_is_a_model_when_asked_for_by_path(put: Put, tmp_path: Path) -> None:
    inside, outside = put("o/r/inside.gguf"), tmp_path / "models" / "far.gguf"
    catalog = Catalog([tmp_path / "models" / "o"])
    catalog.refresh()
    assert catalog.at(inside) is catalog.models["inside"]
    with pytest.raises(ModelNotFound, match=r"far\.gguf"):
        catalog.at(outside)
    put("far.gguf")
    model = catalog.at(outside)
    assert (model.key, model.parts) == ("far", (outside,))
    assert catalog.at(outside) is model
    assert "far" not in catalog.models
    put("far.gguf", "F16", general__name="longer than it was")
    assert catalog.at(outside).header.quantization == "F16"
    outside.write_bytes(b"bad")
    with pytest.raises(ModelFileError, match="no GGUF file"):
        catalog.at(outside)


def test_the_first_of_several_parts_outside_brings_the_others(put: Put, tmp_path: Path) -> None:
    first = put("big-00001-of-00002.gguf", split__no=0, split__count=2)
    catalog = fresh(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match=r"big-00002-of-00002\.gguf"):
        catalog.at(first)
    second = put("big-00002-of-00002.gguf", split__no=1, split__count=2)
    age(first)
    assert catalog.at(first).parts == (first, second)


# ── following ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("use_events", [True, False])
async def test_additions_and_removals_are_followed(put: Put, tmp_path: Path, use_events: bool) -> None:
    (tmp_path / "models").mkdir()
    catalog = Catalog([tmp_path / "models", tmp_path / "later"])
    told: asyncio.Queue[Refreshed] = asyncio.Queue()
    unsubscribe = catalog.subscribe(told.put_nowait)
    watching = asyncio.create_task(catalog.watch(poll=0.2, use_events=use_events))
    path = put("o/r/new.gguf")
    assert (await asyncio.wait_for(told.get(), 30)).added == ("o/r",)
    path.unlink()
    assert (await asyncio.wait_for(told.get(), 30)).removed == ("o/r",)
    (tmp_path / "later").mkdir()
    put("x.gguf").rename(tmp_path / "later" / "x.gguf")
    while "x" not in catalog.models or catalog.models["x"].path.parent.name != "later":
        await asyncio.wait_for(told.get(), 30)
    unsubscribe()
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_a_subscriber_that_fails_does_not_keep_the_others_from_hearing(put: Put, tmp_path: Path) -> None:
    put("m.gguf")
    catalog = Catalog([tmp_path / "models"])
    told: list[Refreshed] = []

    def fail(_: Refreshed) -> None:
        raise RuntimeError

    catalog.subscribe(fail)
    catalog.subscribe(told.append)
    await catalog.update()
    await catalog.update()
    assert [one.added for one in told] == [("m",)]
