"""Real files, saved as editors and deployments save them. Each wait is for a change that must come.

That a save is told once is shown by a second change: what it brings is the very next thing told.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from watchfiles import awatch

from lmd.config import watch
from lmd.config.store import ConfigStore, Reloaded
from lmd.config.watch import Watched, fingerprint, folders, watch_files
from tests.lmd.config.saving import SAVES, rename_over


class Site(Protocol):
    folder: Path
    settings: Path
    presets: Path

    def write(self, name: str, text: str) -> Path: ...
    def store(self) -> ConfigStore: ...


class Live:
    """A store that watches, and what it tells."""

    def __init__(self, store: ConfigStore) -> None:
        self.store = store
        self.told: asyncio.Queue[Reloaded] = asyncio.Queue()
        store.subscribe(self.told.put_nowait)

    async def next(self) -> Reloaded:
        async with asyncio.timeout(20):
            return await self.told.get()


def no_events(*_: object, **__: object) -> object:
    raise OSError(28, "OS file watch limit reached")


@pytest.fixture(params=["events", "no events"])
async def live(site: Site, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    if request.param == "no events":
        monkeypatch.setattr(watch, "awatch", no_events)
    (site.presets / "a.toml").write_text('model = "one"')
    live = Live(site.store())
    task = asyncio.create_task(live.store.watch())
    yield live
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("save", SAVES)
async def test_each_way_of_saving_is_told_once(live: Live, site: Site, save: Callable[[Path, str], None]) -> None:
    for model in ("two", "three"):
        save(site.presets / "a.toml", f'model = "{model}"')
        reloaded = await live.next()
        assert (reloaded.changed, reloaded.problems) == (("a",), ())
        assert live.store.snapshot.presets["a"].model == model
    assert live.told.empty()


async def test_new_and_deleted_presets_are_told(live: Live, site: Site) -> None:
    path = site.write("b", 'model = "m"')
    assert (await live.next()).changed == ("b",)
    path.unlink()
    assert (await live.next()).changed == ("b",)
    assert list(live.store.snapshot.presets) == ["a"]


async def test_a_wrong_edit_is_told_and_its_mending_too(live: Live, site: Site) -> None:
    site.write("a", "model = ")
    assert len((await live.next()).problems) == 1
    assert live.store.snapshot.presets["a"].model == "one"
    site.write("a", 'model = "one"')
    assert (await live.next()).problems == ()


async def test_files_that_are_no_presets_tell_nothing(live: Live, site: Site) -> None:
    (site.presets / ".b.toml.swp").write_text("x")
    (site.presets / "b.toml~").write_text("x")
    (site.presets / "a.toml").touch()
    site.write("b", 'model = "m"')
    assert (await live.next()).changed == ("b",)
    assert live.told.empty()


async def test_the_settings_file_is_watched(live: Live, site: Site) -> None:
    rename_over(site.settings, '[paths]\npresets = "presets.d"\n[models]\nttl = "5m"\n')
    assert (await live.next()).settings == ("models.ttl",)


async def test_a_template_elsewhere_is_watched_as_soon_as_a_preset_names_it(live: Live, site: Site) -> None:
    (site.folder / "templates").mkdir()
    template = site.folder / "templates/t.jinja"
    template.write_text("one")
    site.write("a", 'model = "one"\nchat.template_file = "../templates/t.jinja"')
    assert (await live.next()).changed == ("a",)
    template.write_text("two")
    assert (await live.next()).changed == ("a",)
    assert live.store.snapshot.presets["a"].chat.template == "two"


async def test_a_config_map_is_told_once_for_each_update(live: Live, site: Site) -> None:
    # As the kubelet does it: files link to ..data/, which links to a directory of the version, swapped by rename.
    def publish(version: str, **texts: str) -> None:
        folder = site.presets / f"..{version}"
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}.toml").write_text(text)
        (site.presets / "..data_tmp").symlink_to(folder.name)
        (site.presets / "..data_tmp").replace(site.presets / "..data")

    (site.presets / "a.toml").unlink()
    publish("v1", a='model = "v1"', b='model = "v1"')
    for name in "ab":
        (site.presets / f"{name}.toml").symlink_to(f"..data/{name}.toml")
    assert (await live.next()).changed == ("a", "b")
    publish("v2", a='model = "v2"', b='model = "v2"')
    shutil.rmtree(site.presets / "..v1")
    assert (await live.next()).changed == ("a", "b")
    assert {preset.model for preset in live.store.snapshot.presets.values()} == {"v2"}
    publish("v3", a='model = "v3"', b='model = "v2"')
    assert (await live.next()).changed == ("a",)
    assert live.told.empty()


async def test_a_link_s_target_is_watched(live: Live, site: Site) -> None:
    (site.folder / "real").mkdir()
    target = site.folder / "real/b.toml"
    target.write_text('model = "one"')
    (site.presets / "b.toml").symlink_to(target)
    assert (await live.next()).changed == ("b",)
    target.write_text('model = "two"')
    assert (await live.next()).changed == ("b",)


async def test_a_directory_may_go_and_come_back(live: Live, site: Site) -> None:
    shutil.rmtree(site.presets)
    reloaded = await live.next()
    assert (reloaded.changed, len(reloaded.problems)) == (("a",), 1)
    site.presets.mkdir()
    assert (await live.next()).problems == ()
    site.write("a", 'model = "two"')
    assert (await live.next()).changed == ("a",)


async def test_directories_and_settings_may_come_later(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "CONFIGURATION_DIRECTORY": str(tmp_path / "etc/deep")}
    live = Live(ConfigStore(environ=environ))
    task = asyncio.create_task(live.store.watch())
    (tmp_path / "etc/deep/presets.d").mkdir(parents=True)
    (tmp_path / "etc/deep/presets.d/a.toml").write_text('model = "m"')
    assert (await live.next()).changed == ("a",)
    (tmp_path / "etc/deep/lmd.toml").write_text("[models]\nttl = 5\n")
    assert (await live.next()).settings == ("models.ttl",)
    assert live.store.snapshot.file == tmp_path / "etc/deep/lmd.toml"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_changed_before_the_watch_began_is_told(site: Site) -> None:
    live = Live(site.store())
    site.write("a", 'model = "m"')
    task = asyncio.create_task(live.store.watch())
    assert (await live.next()).changed == ("a",)
    task.cancel()


async def watching(targets: Watched, **options: float) -> AsyncIterator[None]:
    """`watch_files` as an iterator of its calls."""
    called: asyncio.Queue[None] = asyncio.Queue()
    task = asyncio.create_task(watch_files(lambda: targets, lambda: called.put(None), **options))
    try:
        while True:
            async with asyncio.timeout(20):
                yield await called.get()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_inotify_alone_wakes_the_watch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.write("a", "1")
    in_place = asyncio.Event()

    def started(*paths: Path, **options: Any) -> object:
        # The generator sets its watches up when it is first asked, which is before this call's turn comes.
        asyncio.get_running_loop().call_soon(in_place.set)
        return awatch(*paths, **options)

    monkeypatch.setattr(watch, "awatch", started)
    calls = watching(Watched(site.presets, frozenset()), poll=3600.0)
    await anext(calls)
    await in_place.wait()
    rename_over(path, "2")
    await anext(calls)
    await calls.aclose()


async def test_a_half_written_file_is_not_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.write("a", "old")
    rest = iter(["ha", "half-", "half-writ", "half-written"])
    real = watch.fingerprint

    def look_while_writing(targets: Watched) -> object:
        # The writer gets on between any two looks, until it is done.
        found = real(targets)
        if path.read_text() != "old" and (text := next(rest, None)) is not None:
            path.write_text(text)
        return found

    monkeypatch.setattr(watch, "fingerprint", look_while_writing)
    calls = watching(Watched(site.presets, frozenset()))
    await anext(calls)
    path.write_text("")
    await anext(calls)
    assert path.read_text() == "half-written"
    await calls.aclose()


async def test_a_file_that_never_stands_still_is_read_all_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    path = site.write("a", "0")
    real = watch.fingerprint

    def look_while_writing(targets: Watched) -> object:
        path.write_text(path.read_text() + "+")
        return real(targets)

    monkeypatch.setattr(watch, "fingerprint", look_while_writing)
    monkeypatch.setattr(watch, "SETTLE_LIMIT_SECONDS", 0.1)
    calls = watching(Watched(site.presets, frozenset()), settle=0.01)
    for _ in range(3):
        await anext(calls)
    await calls.aclose()


def test_the_fingerprint_tells_contents_apart_and_nothing_else(site: Site) -> None:
    path = site.write("a", "1")
    targets = Watched(site.presets, frozenset({site.settings, site.folder / "missing"}))
    before = fingerprint(targets)
    (site.folder / "notes.txt").write_text("x")
    assert fingerprint(targets) == before
    rename_over(path, "2")
    assert fingerprint(targets) != before


def test_directories_that_do_not_exist_are_watched_from_the_nearest_that_does(site: Site) -> None:
    targets = Watched(site.folder / "no/such/presets.d", frozenset({site.folder / "neither/lmd.toml", site.settings}))
    assert folders(targets) == {site.folder}


async def test_a_cancelled_watch_leaves_no_task_behind(site: Site) -> None:
    before = asyncio.all_tasks()
    calls = watching(Watched(site.presets, frozenset({site.settings})))
    await anext(calls)
    await calls.aclose()
    assert asyncio.all_tasks() == before


async def test_a_preset_that_comes_and_goes_between_looks_does_not_stay(site: Site) -> None:
    targets = Watched(site.presets, frozenset())
    before = fingerprint(targets)
    site.write("b", 'model = "m"').unlink()
    assert fingerprint(targets) != before


def test_a_link_that_leads_to_itself_is_looked_at_where_it_is(site: Site) -> None:
    site.presets.mkdir(exist_ok=True)
    loop = site.presets / "loop.toml"
    loop.symlink_to(loop)
    assert site.presets in folders(Watched(site.presets, frozenset({loop})))
