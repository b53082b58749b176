"""The store over real files: what serves, what is wrong, and what a reload changes."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any, Protocol

import pytest

from lmd.config import store as store_module
from lmd.config.store import ConfigStore, Reloaded, Snapshot, alias_clashes, check
from lmd.errors import ConfigError, ModelNotFound


class Site(Protocol):
    folder: Path
    settings: Path
    presets: Path

    def write(self, name: str, text: str) -> Path: ...
    def store(self) -> ConfigStore: ...


def messages(store: ConfigStore) -> list[str]:
    return [str(problem) for problem in store.snapshot.problems]


def test_presets_are_found_by_name_and_alias(site: Site) -> None:
    site.write("b", 'model = "m"\naliases = ["gpt-4o"]')
    site.write("a", 'model = "n"')
    snapshot = site.store().snapshot
    assert list(snapshot.presets) == ["a", "b"]
    assert snapshot.preset("gpt-4o") is snapshot.preset("b") is snapshot.presets["b"]
    assert snapshot.preset("c") is None
    assert snapshot.problems == ()


def test_other_files_in_the_directory_are_no_presets(site: Site) -> None:
    for name in (".a.toml.swp", "a.toml~", "#a.toml#", ".a.toml", "notes.txt", "t.jinja"):
        (site.presets / name).write_text("not [ toml")
    (site.presets / "..data").mkdir()
    assert (dict(site.store().snapshot.presets), messages(site.store())) == ({}, [])


def test_a_wrong_preset_at_the_start_is_not_served_and_the_others_are(site: Site) -> None:
    site.write("good", 'model = "m"')
    path = site.write("bad", 'model = "m"\n[load]\nparallel = 0\n')
    store = site.store()
    assert list(store.snapshot.presets) == ["good"]
    assert messages(store) == [f"{path}:3:1: load.parallel: expected at least 1, not 0"]


def test_wrong_settings_at_the_start_are_an_error(site: Site) -> None:
    site.settings.write_text("[server]\nport = 'x'\n")
    with pytest.raises(ConfigError, match=r"lmd\.toml:2:1: server\.port: expected an integer"):
        site.store()


async def test_an_edit_counts_after_the_reload(site: Site) -> None:
    site.write("a", 'model = "m"')
    store = site.store()
    before = store.snapshot
    site.write("a", 'model = "m"\nsampling.temperature = 0.5')
    site.write("b", 'model = "m"')
    assert store.snapshot is before
    reloaded = await store.reload()
    assert reloaded.changed == ("a", "b")
    assert store.snapshot.presets["a"].sampling.temperature == 0.5
    assert before.presets["a"].sampling.temperature is None


async def test_a_deleted_preset_is_gone(site: Site) -> None:
    path = site.write("a", 'model = "m"\naliases = ["x"]')
    store = site.store()
    path.unlink()
    assert (await store.reload()).changed == ("a",)
    assert (store.snapshot.preset("a"), store.snapshot.preset("x")) == (None, None)


@pytest.mark.parametrize(
    "bad", ["", "model = ", 'modle = "m"', "[load]\nparallel = 4", 'model = "m"\nextends = "gone"']
)
async def test_a_wrong_edit_keeps_the_last_good_version_until_it_is_mended(site: Site, bad: str) -> None:
    site.write("a", 'model = "m"\naliases = ["x"]')
    store = site.store()
    good = store.snapshot.presets["a"]
    site.write("a", bad)
    reloaded = await store.reload()
    assert reloaded.changed == ()
    assert len(reloaded.problems) == 1
    assert reloaded.problems[0].file.endswith("a.toml")
    assert store.snapshot.preset("x") == good
    assert (await store.reload()).problems == reloaded.problems
    site.write("a", 'model = "n"')
    assert await store.reload() == Reloaded(changed=("a",), settings=(), problems=(), notices=())
    assert store.snapshot.presets["a"].model == "n"


async def test_a_preset_whose_base_turns_wrong_goes_on_with_the_last_good_base(site: Site) -> None:
    site.write("base", 'model = "m"\nload.parallel = 2')
    site.write("leaf", 'extends = "base"')
    store = site.store()
    site.write("base", "load.parallel = 0")
    site.write("leaf", 'extends = "base"\nsampling.temperature = 0.1')
    reloaded = await store.reload()
    assert [Path(problem.file).name for problem in reloaded.problems] == ["base.toml"]
    leaf = store.snapshot.presets["leaf"]
    assert (leaf.load.parallel, leaf.sampling.temperature) == (2, 0.1)


async def test_a_deleted_base_leaves_those_that_extend_it_as_they_were(site: Site) -> None:
    base = site.write("base", "load.parallel = 2")
    site.write("leaf", 'extends = "base"\nmodel = "m"')
    store = site.store()
    base.unlink()
    await store.reload()
    assert store.snapshot.presets["leaf"].load.parallel == 2
    assert "no preset file 'base.toml'" in messages(store)[0]


async def test_a_circle_that_an_edit_makes_changes_nothing_that_serves(site: Site) -> None:
    site.write("a", 'model = "m"')
    site.write("b", 'extends = "a"')
    store = site.store()
    before = dict(store.snapshot.presets)
    site.write("a", 'model = "m"\nextends = "b"')
    assert (await store.reload()).changed == ()
    assert store.snapshot.presets == before
    assert len(store.snapshot.problems) == 2
    assert all("presets extend each other" in message for message in messages(store))


async def test_an_edit_of_the_base_changes_all_that_extend_it(site: Site) -> None:
    site.write("base", "load.parallel = 2")
    site.write("leaf", 'extends = "base"\nmodel = "m"')
    store = site.store()
    assert list(store.snapshot.presets) == ["leaf"]
    assert list(store.snapshot.bases) == ["base"]
    site.write("base", "load.parallel = 3")
    assert (await store.reload()).changed == ("base", "leaf")
    assert store.snapshot.presets["leaf"].load.parallel == 3


def test_a_preset_without_a_model_that_nobody_extends_is_a_mistake(site: Site) -> None:
    site.write("a", "load.parallel = 2")
    assert "names no model, and no preset extends it" in messages(site.store())[0]


async def test_an_edited_template_changes_its_preset(site: Site) -> None:
    (site.presets / "t.jinja").write_text("one")
    site.write("a", 'model = "m"\nchat.template_file = "t.jinja"')
    store = site.store()
    (site.presets / "t.jinja").write_text("two")
    assert (await store.reload()).changed == ("a",)
    assert store.snapshot.presets["a"].chat.template == "two"
    (site.presets / "t.jinja").unlink()
    assert len((await store.reload()).problems) == 1
    assert store.snapshot.presets["a"].chat.template == "two"


# ── names and aliases ─────────────────────────────────────────────────────────────────────────


def test_an_alias_of_two_presets_is_an_error_that_names_both_files(site: Site) -> None:
    one = site.write("one", 'model = "m"\naliases = ["x"]')
    two = site.write("two", 'model = "m"\naliases = ["y", "x"]')
    store = site.store()
    assert list(store.snapshot.presets) == ["one"]
    (problem,) = store.snapshot.problems
    assert (problem.file, problem.line, problem.key) == (str(two), 2, "aliases[1]")
    assert f"'x' is an alias of the preset in {one}" in problem.message


def test_an_alias_that_is_another_preset_s_name_is_an_error(site: Site) -> None:
    site.write("a", 'model = "m"\naliases = ["z"]')
    z = site.write("z", 'model = "m"')
    store = site.store()
    assert list(store.snapshot.presets) == ["z"]
    assert f"'z' is the name of the preset in {z}" in messages(store)[0]


async def test_who_has_an_alias_keeps_it_against_a_newcomer(site: Site) -> None:
    site.write("z", 'model = "m"\naliases = ["x"]')
    store = site.store()
    site.write("a", 'model = "m"\naliases = ["x"]')
    site.write("x", 'model = "m"')
    reloaded = await store.reload()
    assert reloaded.changed == ()
    assert {Path(problem.file).name for problem in reloaded.problems} == {"a.toml", "x.toml"}
    assert store.snapshot.preset("x") is store.snapshot.presets["z"]


async def test_an_edit_that_clashes_keeps_the_last_good_version(site: Site) -> None:
    site.write("a", 'model = "m"\naliases = ["x"]')
    site.write("b", 'model = "m"\naliases = ["y"]')
    store = site.store()
    # b gives up y, which c takes; but b's edit clashes with a, so b keeps y and c has to wait.
    site.write("b", 'model = "m"\naliases = ["x"]')
    site.write("c", 'model = "m"\naliases = ["y"]')
    await store.reload()
    assert dict(store.snapshot.aliases) == {"x": "a", "y": "b"}
    assert [Path(problem.file).name for problem in store.snapshot.problems] == ["b.toml", "c.toml"]
    site.write("b", 'model = "m"')
    assert (await store.reload()).problems == ()
    assert dict(store.snapshot.aliases) == {"x": "a", "y": "c"}


async def test_two_presets_may_swap_aliases_in_one_edit(site: Site) -> None:
    site.write("a", 'model = "m"\naliases = ["x"]')
    site.write("b", 'model = "m"\naliases = ["y"]')
    store = site.store()
    site.write("a", 'model = "m"\naliases = ["y"]')
    site.write("b", 'model = "m"\naliases = ["x"]')
    assert (await store.reload()).problems == ()
    assert dict(store.snapshot.aliases) == {"y": "a", "x": "b"}


def test_aliases_that_are_model_keys_are_told_to_who_knows_the_models(site: Site) -> None:
    path = site.write("a", 'model = "m"\naliases = ["Owner/Repo", "x"]')
    models = {"owner/repo": Path("/m/repo.gguf"), "y": Path("/m/y.gguf")}
    (problem,) = alias_clashes(site.store().snapshot, models)
    assert (problem.file, problem.line) == (str(path), 2)
    assert "'Owner/Repo' is also the key of the model /m/repo.gguf" in problem.message
    assert site.store().check(models) == (problem,)
    assert site.store().check() == ()


# ── settings ──────────────────────────────────────────────────────────────────────────────────


async def test_wrong_settings_on_reload_keep_the_old_ones_and_the_presets_go_on(site: Site) -> None:
    store = site.store()
    before = store.snapshot.settings
    site.settings.write_text('[paths]\npresets = "elsewhere"\n[server]\nport = "x"\n')
    site.write("a", 'model = "m"')
    reloaded = await store.reload()
    assert reloaded.changed == ("a",)
    assert store.snapshot.settings == before
    assert messages(store) == [f'{site.settings}:4:1: server.port: expected an integer, not "x"']


async def test_a_change_that_can_count_at_once_counts_at_once(site: Site) -> None:
    store = site.store()
    site.settings.write_text('[paths]\npresets = "presets.d"\n[models]\nttl = "5m"\n')
    reloaded = await store.reload()
    assert reloaded.settings == ("models.ttl",)
    assert store.snapshot.settings.models.ttl == 300


async def test_a_change_of_port_waits_for_a_restart_and_says_so(site: Site) -> None:
    store = site.store()
    site.settings.write_text('[paths]\npresets = "presets.d"\n[server]\nport = 4321\n')
    reloaded = await store.reload()
    assert (reloaded.settings, reloaded.problems) == ((), ())
    assert [str(notice) for notice in reloaded.notices] == [
        f"{site.settings}:4: server.port: takes effect when lmd is started again"
    ]
    assert store.snapshot.settings.server.port == 1234
    assert store.snapshot.origins["server.port"] == "default"


async def test_another_preset_directory_counts_at_once(site: Site) -> None:
    site.write("a", 'model = "m"')
    store = site.store()
    other = site.folder / "other"
    other.mkdir()
    (other / "b.toml").write_text('model = "m"')
    site.settings.write_text('[paths]\npresets = "other"\n')
    assert (await store.reload()).changed == ("a", "b")
    assert list(store.snapshot.presets) == ["b"]


def test_a_preset_directory_that_was_named_and_is_missing_is_a_problem(site: Site) -> None:
    site.presets.rmdir()
    assert messages(site.store()) == [f"{site.presets}: the preset directory cannot be read: no such file or directory"]


def test_a_default_preset_directory_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "lmd.toml").write_text("")
    assert check(tmp_path / "lmd.toml", environ={"HOME": str(tmp_path), "CONFIGURATION_DIRECTORY": str(tmp_path)}) == ()


async def test_a_directory_that_cannot_be_read_keeps_what_serves(site: Site) -> None:
    site.write("a", 'model = "m"')
    store = site.store()
    site.presets.rename(site.folder / "moved")
    site.presets.write_text("a file in the directory's place")
    assert (await store.reload()).changed == ()
    assert "not a directory" in messages(store)[0]
    assert list(store.snapshot.presets) == ["a"]


# ── check, subscribers, effective ─────────────────────────────────────────────────────────────


def test_check_tells_everything_and_changes_nothing(site: Site) -> None:
    site.write("a", 'model = "m"')
    store = site.store()
    before = store.snapshot
    site.write("a", "x = 1")
    site.write("b", "y = 1")
    site.settings.write_text('[paths]\npresets = "presets.d"\n[server]\nport = "x"\n')
    found = store.check()
    assert [problem.key for problem in found] == ["server.port", "x", "y"]
    assert store.snapshot is before
    assert [problem.key for problem in check(site.settings, environ={})] == ["server.port", "x", "y"]


def test_check_reads_no_file_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = check(tmp_path / "nope.toml", environ={"HOME": str(tmp_path)})
    assert "no such file" in problem.message


async def test_subscribers_hear_of_changes_and_of_problems_and_of_nothing_else(site: Site) -> None:
    path = site.write("a", 'model = "m"')
    store = site.store()
    heard: list[Reloaded] = []
    stop = store.subscribe(heard.append)
    await store.reload()
    path.touch()
    path.write_text('model = "m"')
    await store.reload()
    assert heard == []
    site.write("a", "x = 1")
    await store.reload()
    await store.reload()
    assert [len(reloaded.problems) for reloaded in heard] == [1]
    stop()
    stop()
    site.write("a", 'model = "n"')
    await store.reload()
    assert len(heard) == 1


async def test_a_subscriber_that_fails_does_not_keep_the_others_from_hearing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    store = site.store()
    heard: list[Reloaded] = []

    def broken(_: Reloaded) -> None:
        raise ValueError("broken subscriber")

    store.subscribe(broken)
    store.subscribe(heard.append)
    site.write("a", 'model = "m"')
    with caplog.at_level(logging.ERROR):
        await store.reload()
    assert len(heard) == 1
    assert "broken subscriber" in caplog.text


def test_effective_tells_every_setting_and_where_it_came_from(site: Site) -> None:
    site.settings.write_text(
        '[paths]\npresets = "presets.d"\n[models]\nttl = "5m"\n[defaults.load]\nparallel = 3\nbatch = 64\n'
        "[defaults.sampling]\ntemperature = 0.1\n"
    )
    site.write("base", 'model = "m"\nload.parallel = 8')
    site.write(
        "leaf", 'extends = "base"\naliases = ["x"]\n[chat]\ntemplate_args = { deep = true }\n[sampling]\nstop = ["s"]'
    )
    values, origins = site.store().effective("x")
    assert values["ttl"] == "5m"
    assert values["load"]["parallel"] == 8
    assert values["load"]["batch"] == 64
    assert values["load"]["threads"] is None
    assert values["sampling"]["temperature"] == 0.1
    assert values["sampling"]["stop"] == ["s"]
    assert values["chat"]["template_args"] == {"deep": True}
    presets = site.presets
    assert origins["model"] == f"{presets}/base.toml:1"
    assert origins["load.parallel"] == f"{presets}/base.toml:2"
    assert origins["load.batch"] == f"{site.settings}:7"
    assert origins["load.threads"] == "default"
    assert origins["ttl"] == f"{site.settings}:4"
    assert origins["sampling.stop"] == f"{presets}/leaf.toml:6"
    assert origins["chat.template_args.deep"] == f"{presets}/leaf.toml:4"


def test_effective_of_an_unknown_preset_says_how_to_list_them(site: Site) -> None:
    with pytest.raises(ModelNotFound, match="lmctl preset ls"):
        site.store().effective("nope")


def test_a_snapshot_cannot_be_changed(site: Site) -> None:
    site.write("a", 'model = "m"')
    snapshot: Snapshot = site.store().snapshot
    with pytest.raises(TypeError):
        snapshot.presets["b"] = snapshot.presets["a"]  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        snapshot.settings.server.port = 1


async def test_slow_files_hold_up_nothing_and_what_is_read_last_counts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = site.store()
    loop = asyncio.get_running_loop()
    begun, written, real = asyncio.Event(), threading.Event(), store_module.load_settings

    def slow(*args: Any, **options: Any) -> Any:
        loaded = real(*args, **options)
        if not written.is_set():
            loop.call_soon_threadsafe(begun.set)
            assert written.wait(20), "the event loop stood still meanwhile"
        return loaded

    monkeypatch.setattr(store_module, "load_settings", slow)
    first = asyncio.create_task(store.reload())
    await begun.wait()
    second = asyncio.create_task(store.reload())
    before = store.snapshot
    site.settings.write_text('[paths]\npresets = "presets.d"\n[models]\nttl = "7m"\n')
    assert store.snapshot is before
    written.set()
    await asyncio.gather(first, second)
    assert store.snapshot.settings.models.ttl == 420
