from collections.abc import Callable
from pathlib import Path

import pytest

from lmd.errors import AmbiguousModel, ModelNotFound
from lmd.library.catalog import Catalog

Put = Callable[..., Path]


@pytest.fixture
def listed(tmp_path: Path) -> Callable[[], Catalog]:
    def make() -> Catalog:
        catalog = Catalog([tmp_path / "models"])
        catalog.refresh()
        return catalog

    return make


def reasons(catalog: Catalog) -> dict[str, str]:
    return {broken.path.name: broken.reason for broken in catalog.broken}


# ── keys ──────────────────────────────────────────────────────────────────────────────────────


def test_a_repository_with_one_quantization_is_named_by_publisher_and_repository(put: Put, listed: Callable) -> None:
    put("Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf", "Q4_K_M")
    (model,) = listed().models.values()
    assert (model.key, model.publisher, model.repo) == ("Qwen/Qwen3-8B-GGUF", "Qwen", "Qwen3-8B-GGUF")


def test_several_quantizations_of_a_repository_are_told_apart(put: Put, listed: Callable) -> None:
    put("owner/repo/a-q4.gguf", "Q4_K_M")
    put("owner/repo/a-q8.gguf", "Q8_0")
    assert list(listed().models) == ["owner/repo@q4_k_m", "owner/repo@q8_0"]


def test_the_stem_is_appended_where_the_quantization_does_not_tell(put: Put, listed: Callable) -> None:
    put("owner/repo/a.gguf", "Q4_K_M")
    put("owner/repo/UD-a.gguf", "Q4_K_M")
    put("owner/repo/b.gguf", "Q8_0")
    put("owner/same/x.gguf")
    put("owner/same/y.gguf")
    assert list(listed().models) == [
        "owner/repo@q4_k_m/a",
        "owner/repo@q4_k_m/UD-a",
        "owner/repo@q8_0",
        "owner/same/x",
        "owner/same/y",
    ]


def test_a_loose_file_is_named_by_its_stem_and_where_that_is_taken_by_its_directory(put: Put, listed: Callable) -> None:
    put("loose.gguf")
    put("one/twin.gguf")
    put("two/twin.gguf")
    assert list(listed().models) == ["loose", "one/twin", "two/twin"]


def test_the_first_of_two_directories_wins_and_the_other_file_is_told(put: Put, tmp_path: Path) -> None:
    put("a/b/c.gguf")
    second = tmp_path / "second" / "a" / "b" / "c.gguf"
    second.parent.mkdir(parents=True)
    second.write_bytes((tmp_path / "models/a/b/c.gguf").read_bytes())
    catalog = Catalog([tmp_path / "models", tmp_path / "second"])
    catalog.refresh()
    assert {key: model.path for key, model in catalog.models.items()} == {"a/b": tmp_path / "models/a/b/c.gguf"}
    (broken,) = catalog.broken
    assert broken.path == second
    assert str(tmp_path / "models/a/b/c.gguf") in broken.reason


def test_equal_stems_in_the_folders_of_a_repository_keep_apart(put: Put, listed: Callable) -> None:
    put("o/r/x/m.gguf")
    put("o/r/y/m.gguf")
    assert list(listed().models) == ["o/r/m", "o/r/y/m.gguf"]


# ── names ─────────────────────────────────────────────────────────────────────────────────────


def test_every_unambiguous_short_form_is_understood(put: Put, listed: Callable) -> None:
    put("Qwen/Qwen3-8B-GGUF/qwen3-8b-q4_k_m.gguf", "Q4_K_M")
    put("Qwen/Qwen3-8B-GGUF/qwen3-8b-q8_0.gguf", "Q8_0")
    put("meta/Llama-GGUF/llama-f16.gguf", "F16")
    catalog = listed()
    for name in ("Qwen/Qwen3-8B@q8_0", "qwen3-8b-gguf@Q8_0", "Qwen3-8B@q8_0", "QWEN3-8B-Q8_0", "qwen3-8b-q8_0.gguf"):
        assert catalog.find(name).key == "Qwen/Qwen3-8B-GGUF@q8_0"
    for name in ("meta/llama-gguf", "llama", "LLAMA", "meta/llama", "llama@f16", "llama-f16", "llama/llama-f16"):
        assert catalog.find(name).key == "meta/Llama-GGUF"


def test_an_ambiguous_name_lists_the_candidates(put: Put, listed: Callable) -> None:
    put("one/Model-GGUF/m.gguf")
    put("two/Model-GGUF/n.gguf")
    with pytest.raises(AmbiguousModel) as caught:
        listed().find("model")
    assert caught.value.candidates == ("one/Model-GGUF", "two/Model-GGUF")


def test_a_whole_key_is_meant_before_a_short_form(put: Put, listed: Callable) -> None:
    put("qwen.gguf")
    put("owner/qwen/file.gguf")
    assert listed().find("Qwen").key == "qwen"


def test_an_unknown_name_gets_near_ones_offered(put: Put, listed: Callable) -> None:
    put("owner/Mistral-GGUF/mistral.gguf")
    with pytest.raises(ModelNotFound) as caught:
        listed().find("mistrall")
    assert "owner/Mistral-GGUF" in str(caught.value.hint)
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["", "../models/loose.gguf", "/etc/passwd", "x" * 100_000, "\0", "\ud800"])
def test_no_name_is_taken_for_a_path(put: Put, listed: Callable, name: str) -> None:
    path = put("loose.gguf")
    catalog = listed()
    for wrong in (name, str(path)):
        with pytest.raises(ModelNotFound):
            catalog.find(wrong)


# ── parts ─────────────────────────────────────────────────────────────────────────────────────


def part(number: int, count: int = 3) -> dict:
    return {"split__no": number, "split__count": count}


def test_parts_are_one_model_with_the_sums_of_all(put: Put, listed: Callable) -> None:
    for number in range(3):
        tensors = [(f"blk.{number}.w", (32, 2), 0, 256)] if number else [("token_embd.weight", (32, 1), 0, 128)]
        put(f"o/r/big-{number + 1:05}-of-00003.gguf", tensors=tensors, **part(number))
    catalog = listed()
    (model,) = catalog.models.values()
    assert catalog.broken == ()
    assert model.key == "o/r"
    assert model.stem == "big"
    assert [path.name for path in model.parts] == [f"big-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    assert model.path == model.parts[0]
    assert model.header.n_params == 32 + 64 + 64
    assert model.header.tensor_bytes == 128 + 256 + 256
    assert model.header.block_bytes == (0, 256, 256)
    assert model.size == sum(path.stat().st_size for path in model.parts)
    assert catalog.find("big") == model


def test_missing_parts_are_named(put: Put, listed: Callable) -> None:
    put("o/r/big-00002-of-00003.gguf", **part(1))
    catalog = listed()
    assert not catalog.models
    reason = reasons(catalog)["big-00002-of-00003.gguf"]
    assert "2 of its 3 parts are missing: big-00001-of-00003.gguf, big-00003-of-00003.gguf" in reason


def test_a_broken_part_takes_its_sisters_along(put: Put, listed: Callable) -> None:
    put("o/r/big-00001-of-00002.gguf", **part(0, 2))
    put("o/r/big-00002-of-00002.gguf").write_bytes(b"GGUF")
    catalog = listed()
    assert not catalog.models
    assert "part big-00002-of-00002.gguf" in reasons(catalog)["big-00001-of-00002.gguf"]
    assert "big-00002-of-00002.gguf" in reasons(catalog)


def test_a_part_under_another_name_is_told(put: Put, listed: Callable) -> None:
    put("renamed.gguf", **part(0))
    put("x-00001-of-00002.gguf", **part(1, 2))
    put("x-00002-of-00002.gguf", **part(0, 2))
    catalog = listed()
    assert not catalog.models
    assert "one of 3 parts" in reasons(catalog)["renamed.gguf"]
    assert "part 2 of 2" in reasons(catalog)["x-00001-of-00002.gguf"]


# ── what is beside models ─────────────────────────────────────────────────────────────────────

CLIP = {"general__architecture": "clip", "general__type": "mmproj"}


def test_a_projector_is_the_vision_part_of_its_neighbours(put: Put, listed: Callable) -> None:
    put("o/vl/model-q4.gguf", "Q4_K_M")
    put("o/vl/model-q8.gguf", "Q8_0")
    put("o/vl/mmproj-model-f32.gguf", **CLIP)
    projector = put("o/vl/mmproj-model-f16.gguf", **CLIP)
    put("o/text/model.gguf")
    catalog = listed()
    assert {key: (model.type, model.mmproj) for key, model in catalog.models.items()} == {
        "o/text": ("llm", None),
        "o/vl@q4_k_m": ("vlm", projector),
        "o/vl@q8_0": ("vlm", projector),
    }
    assert catalog.broken == ()


def test_among_loose_files_a_projector_belongs_to_the_model_of_its_name(put: Put, listed: Callable) -> None:
    put("gemma-3-4b-it-Q4_K_M.gguf")
    put("llama.gguf")
    put("mmproj-gemma-3-4b-it-f16.gguf", **CLIP)
    assert {key: model.type for key, model in listed().models.items()} == {
        "gemma-3-4b-it-Q4_K_M": "vlm",
        "llama": "llm",
    }


def test_an_embedding_model_is_listed_as_one(put: Put, listed: Callable) -> None:
    put("embed.gguf", general__architecture="nomic-bert")
    assert listed().models["embed"].type == "embeddings"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"general__type": "adapter"}, "of the type 'adapter'"),
        ({"tensors": ()}, "no tensors"),
        ({"general__architecture": ""}, "no architecture"),
    ],
)
def test_what_is_no_model_is_told_with_the_reason(put: Put, listed: Callable, values: dict, reason: str) -> None:
    put("thing.gguf", **values)
    catalog = listed()
    assert not catalog.models
    assert reason in reasons(catalog)["thing.gguf"]
