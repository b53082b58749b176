import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lmd.config.preset import ChatSettings, Preset
from lmd.config.settings import Defaults, Models, Settings
from lmd.config.snapshot import Snapshot
from lmd.errors import AmbiguousModel, ModelFileError, ModelNotFound
from lmd.generation import SamplingParams
from lmd.library.catalog import Catalog
from lmd.library.resolve import listing, resolve
from lmd.loading import LoadParams

Put = Callable[..., Path]
Resolve = Callable[..., object]


@pytest.fixture
def catalog(put: Put, tmp_path: Path) -> Catalog:
    put("owner/Qwen-GGUF/qwen-q4.gguf", "Q4_K_M")
    put("owner/Qwen-GGUF/qwen-q8.gguf", "Q8_0")
    put("draft.gguf")
    catalog = Catalog([tmp_path / "models"])
    catalog.refresh()
    return catalog


def snapshot_of(*presets: Preset, bases: tuple[Preset, ...] = ()) -> Snapshot:
    settings = Settings.model_construct(
        models=Models(ttl=60.0),
        defaults=Defaults(load=LoadParams(parallel=2, batch=256), sampling=SamplingParams(temperature=0.5, top_k=10)),
    )
    return Snapshot(
        settings=settings,
        presets={preset.name: preset for preset in presets},
        bases={preset.name: preset for preset in bases},
    )


def preset_of(name: str, model: str = "draft", **rest: object) -> Preset:
    return Preset(name=name, file=Path(f"/presets/{name}.toml"), model=model, **rest)  # type: ignore[arg-type]


def test_a_model_that_no_preset_names_is_served_under_its_key_with_the_defaults(catalog: Catalog) -> None:
    target = resolve("QWEN@q8_0", snapshot_of(), catalog)
    assert target.name == "owner/Qwen-GGUF@q8_0"
    assert target.model is catalog.models["owner/Qwen-GGUF@q8_0"]
    assert target.preset is None
    assert target.load == LoadParams(parallel=2, batch=256)
    assert target.sampling == SamplingParams(temperature=0.5, top_k=10)
    assert (target.ttl, target.pinned, target.draft, target.chat) == (60.0, False, None, ChatSettings())


def test_a_preset_goes_over_the_defaults(catalog: Catalog) -> None:
    preset = preset_of(
        "chat",
        "qwen@q4_k_m",
        aliases=("gpt-4o-mini",),
        ttl=math.inf,
        pinned=True,
        load=LoadParams(parallel=8, draft_model="draft"),
        sampling=SamplingParams(temperature=1.0),
        chat=ChatSettings(system_prompt="Be brief."),
    )
    for name in ("chat", "gpt-4o-mini"):
        target = resolve(name, snapshot_of(preset), catalog)
        assert (target.name, target.preset, target.model.key) == ("chat", "chat", "owner/Qwen-GGUF@q4_k_m")
        assert target.load == LoadParams(parallel=8, batch=256, draft_model="draft")
        assert target.draft is catalog.models["draft"]
        assert target.sampling == SamplingParams(temperature=1.0, top_k=10)
        assert target.chat.system_prompt == "Be brief."
        assert (target.ttl, target.pinned) == (math.inf, True)


def test_the_requests_preset_gives_sampling_and_chat_and_leaves_the_load(catalog: Catalog) -> None:
    one = preset_of("one", "qwen@q4_k_m", ttl=5.0, load=LoadParams(parallel=8), sampling=SamplingParams(top_p=0.1))
    two = preset_of(
        "two", load=LoadParams(parallel=1), sampling=SamplingParams(min_p=0.2), chat=ChatSettings(reasoning="off")
    )
    snapshot = snapshot_of(one, two)
    target = resolve("one", snapshot, catalog, preset="two")
    assert (target.name, target.preset, target.model.key) == ("one", "two", "owner/Qwen-GGUF@q4_k_m")
    assert (target.load.parallel, target.ttl) == (8, 5.0)
    assert target.sampling == SamplingParams(temperature=0.5, top_k=10, min_p=0.2)
    assert target.chat.reasoning == "off"
    assert resolve("draft", snapshot, catalog, preset="two").load == LoadParams(parallel=2, batch=256)


def test_a_base_without_a_model_can_be_the_requests_preset_but_no_model(catalog: Catalog) -> None:
    snapshot = snapshot_of(bases=(preset_of("terse", "", sampling=SamplingParams(max_tokens=9)),))
    assert resolve("draft", snapshot, catalog, preset="terse").sampling.max_tokens == 9
    with pytest.raises(ModelNotFound):
        resolve("terse", snapshot, catalog)


def test_a_presets_name_is_meant_before_a_models_key(catalog: Catalog) -> None:
    snapshot = snapshot_of(preset_of("draft", "qwen@q8_0"))
    assert resolve("draft", snapshot, catalog).model.key == "owner/Qwen-GGUF@q8_0"
    assert [(one.name, one.model.key) for one in listing(snapshot, catalog)] == [
        ("draft", "owner/Qwen-GGUF@q8_0"),
        ("owner/Qwen-GGUF@q4_k_m", "owner/Qwen-GGUF@q4_k_m"),
        ("owner/Qwen-GGUF@q8_0", "owner/Qwen-GGUF@q8_0"),
    ]


def test_the_list_has_presets_that_can_serve_and_every_model(catalog: Catalog) -> None:
    names = [one.name for one in listing(snapshot_of(preset_of("a"), preset_of("lost", "no-such-model")), catalog)]
    assert names == ["a", "draft", "owner/Qwen-GGUF@q4_k_m", "owner/Qwen-GGUF@q8_0"]
    for name in names:
        assert resolve(name, snapshot_of(preset_of("a")), catalog).name == name


def test_only_a_preset_can_name_a_file(catalog: Catalog, tmp_path: Path, gguf_bytes: Callable[..., bytes]) -> None:
    path = tmp_path / "elsewhere.gguf"
    path.write_bytes(gguf_bytes())
    snapshot = snapshot_of(preset_of("far", str(path)), preset_of("gone", str(tmp_path / "gone.gguf")))
    assert resolve("far", snapshot, catalog).model.path == path
    with pytest.raises(ModelNotFound):
        resolve(str(path), snapshot, catalog)
    with pytest.raises(ModelNotFound, match=r"gone\.gguf.*'gone'"):
        resolve("gone", snapshot, catalog)
    path.write_bytes(b"bad")
    with pytest.raises(ModelFileError):
        resolve("far", snapshot, catalog)


def test_a_draft_model_can_be_a_file_beside_the_preset(catalog: Catalog, tmp_path: Path) -> None:
    preset = Preset(
        name="p",
        file=tmp_path / "presets.d" / "p.toml",
        model="qwen@q8_0",
        load=LoadParams(draft_model="../models/draft.gguf"),
    )
    assert resolve("p", snapshot_of(preset), catalog).draft is catalog.models["draft"]


def test_errors_name_who_asked_for_what(catalog: Catalog) -> None:
    snapshot = snapshot_of(
        preset_of("assistant"), preset_of("drafted", load=LoadParams(draft_model="drafft")), preset_of("lost", "qwem")
    )
    with pytest.raises(ModelNotFound) as caught:
        resolve("asistant", snapshot, catalog)
    assert "assistant" in str(caught.value.hint)
    with pytest.raises(ModelNotFound) as caught:
        resolve("draft", snapshot, catalog, preset="asistant")
    assert caught.value.param == "preset"
    with pytest.raises(ModelNotFound, match=r"'drafft' of preset 'drafted'.*Did you mean draft"):
        resolve("drafted", snapshot, catalog)
    with pytest.raises(ModelNotFound, match=r"'qwem' of preset 'lost'"):
        resolve("lost", snapshot, catalog)
    with pytest.raises(AmbiguousModel):
        resolve("qwen", snapshot, catalog)
