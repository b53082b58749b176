from math import inf
from pathlib import Path

import pytest

from lmd.config.preset import Preset, PresetFile, read_preset_file, resolve_preset
from lmd.errors import ConfigError, Problem
from lmd.generation import SamplingParams
from lmd.loading import Adapter, LoadParams


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def read(folder: Path, **texts: str) -> dict[str, PresetFile]:
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return {name: read_preset_file(folder / f"{name}.toml", environ={"HOME": "/home/u"}) for name in texts}


def preset(folder: Path, name: str, **texts: str) -> Preset:
    return resolve_preset(name, read(folder, **texts), environ={"HOME": "/home/u"})


def problem(folder: Path, text: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read(folder, p=text)
    (found,) = caught.value.problems
    return found


def test_every_key_of_a_preset_arrives(folder: Path) -> None:
    (folder / "chat.jinja").write_text("{{ messages }}")
    text = """
        model = "owner/repo@q4_k_m"
        description = "fast one"
        aliases = ["gpt-4o-mini", "openai/gpt-4o"]
        ttl = "10m"
        pinned = true
        preload = true
        [load]
        context_length = 4096
        parallel = 2
        kv_cells = 8192
        gpu_layers = 12
        threads = 3
        batch = 256
        flash_attention = true
        kv_cache_type = "q8_0"
        mmap = false
        mlock = true
        draft_model = "owner/draft"
        rope_freq_base = 10000.0
        rope_freq_scale = 0.5
        [sampling]
        temperature = 0
        top_p = 0.9
        top_k = 40
        min_p = 0.05
        repeat_penalty = 1.1
        presence_penalty = 0.1
        frequency_penalty = -0.1
        seed = 7
        max_tokens = -1
        stop = ["###"]
        [chat]
        system_prompt = "Be brief."
        template_file = "chat.jinja"
        reasoning = "low"
        inline_reasoning = true
        [chat.template_args]
        enable_thinking = false
        nested = { a = [1, 2] }
    """
    found = preset(folder, "p", p=text)
    assert (found.name, found.file, found.model) == ("p", folder / "p.toml", "owner/repo@q4_k_m")
    assert found.description == "fast one"
    assert found.aliases == ("gpt-4o-mini", "openai/gpt-4o")
    assert (found.ttl, found.pinned, found.preload) == (600, True, True)
    assert found.load == LoadParams(
        context_length=4096,
        parallel=2,
        kv_cells=8192,
        gpu_layers=12,
        threads=3,
        batch=256,
        flash_attention=True,
        kv_cache_type="q8_0",
        mmap=False,
        mlock=True,
        draft_model="owner/draft",
        rope_freq_base=10000.0,
        rope_freq_scale=0.5,
    )
    assert found.sampling == SamplingParams(
        temperature=0,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repeat_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        seed=7,
        max_tokens=-1,
        stop=("###",),
    )
    assert found.chat.system_prompt == "Be brief."
    assert (found.chat.template_file, found.chat.template) == (folder / "chat.jinja", "{{ messages }}")
    assert found.chat.reasoning == "low"
    assert found.chat.inline_reasoning
    assert found.chat.template_args == {"enable_thinking": False, "nested": {"a": [1, 2]}}
    assert found.origins["load.threads"] == f"{folder}/p.toml:13"
    assert found.origins["chat.template_args.nested"] == f"{folder}/p.toml:40"


def test_a_preset_that_names_only_a_model_leaves_the_rest_unsaid(folder: Path) -> None:
    found = preset(folder, "p", p='model = "a/b"')
    assert found == Preset(name="p", file=folder / "p.toml", model="a/b")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("owner/repo@q8_0", "owner/repo@q8_0"),
        ("loose-file", "loose-file"),
        ("/models/x.gguf", "/models/x.gguf"),
        ("~/x.gguf", "/home/u/x.gguf"),
        ("./x.gguf", "{folder}/x.gguf"),
        ("../x.gguf", "{folder.parent}/x.gguf"),
    ],
)
def test_a_model_is_a_key_unless_it_starts_like_a_path(folder: Path, said: str, meant: str) -> None:
    assert preset(folder, "p", p=f'model = "{said}"').model == meant.format(folder=folder)


@pytest.mark.parametrize(("text", "seconds"), [("300", 300), ('"90s"', 90), ('"never"', inf), ("0", 0), ("1.5", 1.5)])
def test_ttl_takes_seconds_and_durations(folder: Path, text: str, seconds: float) -> None:
    assert preset(folder, "p", p=f'model = "m"\nttl = {text}').ttl == seconds


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("modle = 'x'", (1, 1, "modle"), "unknown key; did you mean 'model'?"),
        ("model = 'm'\ntemperature = 1", (2, 1, "temperature"), "did you mean 'sampling.temperature'?"),
        ("[load]\ntop_k = 1", (2, 1, "load.top_k"), "did you mean 'sampling.top_k'?"),
        ("[load]\nparalel = 1", (2, 1, "load.paralel"), "did you mean 'load.parallel'?"),
        ("[sampling]\ntemperature = 9.5", (2, 1, "sampling.temperature"), "expected at most 5, not 9.5"),
        ("[sampling]\nstop = 'x'", (2, 1, "sampling.stop"), 'expected an array, not "x"'),
        ("[sampling]\nstop = ['x', 1]", (2, 14, "sampling.stop[1]"), "expected a string, not 1"),
        ("[load]\nmmap = 'yes'", (2, 1, "load.mmap"), 'expected true or false, not "yes"'),
        ("load = 3", (1, 1, "load"), "expected a table, not 3"),
        ("model = ''", (1, 1, "model"), "at least 1 characters"),
        ("aliases = ['a b']", (1, 12, "aliases[0]"), "expected a name of letters"),
        ("aliases = ['a', 'a']", (1, 17, "aliases[1]"), "'a' is listed twice"),
        ("ttl = -1", (1, 1, "ttl"), "expected a duration"),
        ("[sampling]\nseed = 9223372036854775808", (2, 1, "sampling.seed"), "does not fit in 64 bits"),
        ("[chat]\nreasoning = 'hard'", (2, 1, "chat.reasoning"), 'expected "auto", "on"'),
        (
            "[chat]\ntemplate_file = 'nope.jinja'",
            (2, 1, "chat.template_file"),
            "nope.jinja cannot be read: no such file",
        ),
        ("[load]\nadapters = [{ scale = 1 }]", (2, 13, "load.adapters[0]"), "'path' is missing"),
        ("[load]\nadapters = ['a.gguf']", (2, 13, "load.adapters[0]"), "a table"),
        ("[chat]\ntemplate_file = '.'", (2, 1, "chat.template_file"), "not a regular file"),
        ("[chat.template_args]\nday = 1979-05-27", (2, 1, "chat.template_args.day"), "dates and times"),
        ("model = 'x", (1, 11, ""), "TOML syntax"),
    ],
)
def test_each_mistake_is_told_with_its_place(
    folder: Path, text: str, place: tuple[int, int, str], message: str
) -> None:
    found = problem(folder, text)
    assert found.file == f"{folder}/p.toml"
    assert (found.line, found.column, found.key) == place
    assert message in found.message


@pytest.mark.parametrize(
    "name", [".hidden", "a b", "-x", "a\n", "ä ", "x" * 129, b"\xff".decode("utf-8", "surrogateescape")]
)
def test_a_file_name_that_is_no_id_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"file name before \.toml") as caught:
        read_preset_file(folder / f"{name}.toml")
    str(caught.value.problems[0]).encode()


@pytest.mark.parametrize("name", ["gpt-4o", "qwen2.5_7b", "a+b@c:d", "modèle", "7"])
def test_usual_names_are_ids(folder: Path, name: str) -> None:
    assert name in read(folder, **{name: 'model = "m"'})


def test_extends_takes_what_is_unsaid_from_the_whole_chain(folder: Path) -> None:
    (folder / "t.jinja").write_text("T")
    found = preset(
        folder,
        "leaf",
        root='model = "m"\nttl = "1h"\npinned = true\n[load]\nparallel = 2\nbatch = 64\n[sampling]\nstop = ["a", "b"]\n'
        "[chat]\ntemplate_file = 't.jinja'\ntemplate_args = { x = 1, y = 2 }",
        middle='extends = "root"\nttl = "2h"\n[load]\nbatch = 128\n[chat]\nsystem_prompt = "S"\nreasoning = "off"',
        leaf='extends = "middle"\n[sampling]\nstop = ["c"]\n[chat]\ntemplate_args = { y = 3 }',
    )
    assert (found.model, found.ttl, found.pinned) == ("m", 7200, True)
    assert (found.load.parallel, found.load.batch) == (2, 128)
    assert found.sampling.stop == ("c",)
    assert (found.chat.system_prompt, found.chat.reasoning, found.chat.template) == ("S", "off", "T")
    assert found.chat.template_args == {"x": 1, "y": 3}
    assert found.origins["load.parallel"] == f"{folder}/root.toml:5"
    assert found.origins["load.batch"] == f"{folder}/middle.toml:4"
    assert found.origins["sampling.stop"] == f"{folder}/leaf.toml:3"
    assert found.origins["chat.template_args.x"] == f"{folder}/root.toml:11"
    assert found.origins["chat.template_args.y"] == f"{folder}/leaf.toml:5"


def test_false_said_by_the_one_who_extends_beats_true(folder: Path) -> None:
    found = preset(
        folder,
        "b",
        a='model = "m"\npinned = true\nload.mlock = true',
        b="extends = 'a'\npinned = false\nload.mlock = false",
    )
    assert (found.pinned, found.load.mlock) == (False, False)


def test_names_of_the_base_stay_its_own(folder: Path) -> None:
    found = preset(folder, "b", a='model = "m"\naliases = ["x"]\ndescription = "d"', b='extends = "a"')
    assert (found.aliases, found.description) == ((), "")
    assert "aliases" not in found.origins


def test_a_template_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/t.jinja").write_text("T")
    found = preset(tmp_path, "p", p='model = "m"\nchat.template_file = "sub/t.jinja"')
    assert found.chat.template_file == tmp_path / "sub/t.jinja"


def test_adapters_are_found_beside_the_file_that_names_them_also_when_another_extends_it(tmp_path: Path) -> None:
    text = 'model = "m"\nload.adapters = [{ path = "../a.gguf", scale = 0.5 }, { path = "/b.gguf" }]'
    (tmp_path / "sub").mkdir()
    found = preset(tmp_path / "sub", "more", base=text, more='extends = "base"')
    assert found.load.adapters == (Adapter(path=str(tmp_path / "a.gguf"), scale=0.5), Adapter(path="/b.gguf"))


@pytest.mark.parametrize(
    ("texts", "circle"),
    [
        ({"a": "extends = 'a'"}, "a → a"),
        ({"a": "extends = 'b'", "b": "extends = 'a'"}, "a → b → a"),
        ({"a": "extends = 'b'", "b": "extends = 'c'", "c": "extends = 'b'"}, "b → c → b"),
    ],
)
def test_a_circle_of_extends_is_named(folder: Path, texts: dict[str, str], circle: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset(folder, "a", **texts)
    (found,) = caught.value.problems
    assert found.message == f"presets extend each other: {circle}"
    assert (found.file, found.line, found.key) == (f"{folder}/a.toml", 1, "extends")


def test_a_missing_base_is_named_with_the_way_to_it(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.toml:1:1: extends: no preset file 'gone\.toml'"):
        preset(folder, "a", a="extends = 'gone'")
    with pytest.raises(ConfigError, match=r"extends 'b', which comes to 'gone' \(b\.toml\)"):
        preset(folder, "a", a="extends = 'b'", b="extends = 'gone'")


def test_a_very_long_chain_is_no_trouble(folder: Path) -> None:
    texts = {f"p{n}": f"extends = 'p{n + 1}'" for n in range(1500)} | {"p1500": "model = 'm'"}
    assert preset(folder, "p0", **texts).model == "m"


def test_the_digest_changes_with_any_file_that_the_preset_is_made_of(folder: Path) -> None:
    template = folder / "t.jinja"
    texts = {"a": "model = 'm'\nchat.template_file = 't.jinja'", "b": "extends = 'a'"}
    template.write_text("one")
    first = preset(folder, "b", **texts).digest
    assert preset(folder, "b", **texts).digest == first
    template.write_text("two")
    second = preset(folder, "b", **texts).digest
    texts["a"] += " "
    assert len({first, second, preset(folder, "b", **texts).digest}) == 3


def test_a_file_with_the_same_text_is_not_parsed_again_but_its_template_is_read(folder: Path) -> None:
    (folder / "t.jinja").write_text("one")
    before = read(folder, p="model = 'm'\nchat.template_file = 't.jinja'")["p"]
    (folder / "t.jinja").write_text("two")
    after = read_preset_file(before.path, known=before)
    assert after.document is before.document
    assert after.template == "two"
