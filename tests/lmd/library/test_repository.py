"""Which files of a repository are one model, and which quantization is taken."""

import pytest

from lmd.errors import InsufficientMemory, InvalidRequest, NotFound
from lmd.library.quantizations import matching, quantization_of
from lmd.library.reference import Reference
from lmd.library.repository import RepoFile, Repository, Room, Variant, choose, proposed, variants

GIB = 2**30
VAST = Room(1 << 50, 1 << 50)


def repository(*files: str | tuple[str, int], tags: tuple[str, ...] = (), name: str = "owner/repo") -> Repository:
    made = [RepoFile(*(one if isinstance(one, tuple) else (one, GIB))) for one in files]
    return Repository(name=name, revision="0" * 40, files=tuple(made), tags=frozenset(tags))


def named(found: tuple[Variant, ...]) -> dict[str, list[str]]:
    return {one.quantization: [file.path for file in one.files] for one in found}


@pytest.mark.parametrize(
    ("path", "quantization"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x-IQ3_XXS.gguf", "IQ3_XXS"),
        ("x-fp16.gguf", "F16"),
        ("x-BF16.gguf", "BF16"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("Q5_K_M/x-00001-of-00002.gguf", "Q5_K_M"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("plain.gguf", ""),
        ("Q4ever.gguf", ""),
    ],
)
def test_quantizations_by_name(path: str, quantization: str) -> None:
    assert quantization_of(path) == quantization


def test_a_name_means_the_one_it_says_before_those_that_begin_so() -> None:
    names = ["Q4_K_M", "Q4_0", "Q8_0", "UD-Q4_K_XL"]
    assert matching("q4_k_m", names) == ["Q4_K_M"]
    assert matching("Q4-K-M", names) == ["Q4_K_M"]
    assert matching("q8", names) == ["Q8_0"]
    assert matching("q4", names) == ["Q4_K_M", "Q4_0"]
    assert matching("q9", names) == []


def test_parts_and_the_vision_part_belong_to_each_quantization() -> None:
    found = variants(
        repository(
            ("a-Q8_0-00001-of-00002.gguf", 5 * GIB),
            ("a-Q8_0-00002-of-00002.gguf", 4 * GIB),
            "a-Q4_K_M.gguf",
            ("mmproj-a-BF16.gguf", 9),
            ("mmproj-a-F16.gguf", 10),
            "a.imatrix.gguf",
            "README.md",
        )
    )
    assert named(found) == {
        "Q4_K_M": ["mmproj-a-F16.gguf", "a-Q4_K_M.gguf"],
        "Q8_0": ["mmproj-a-F16.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"],
    }
    assert found[1].size == 9 * GIB + 10


def test_half_a_split_model_is_none() -> None:
    assert variants(repository("a-Q8_0-00001-of-00002.gguf")) == ()


def test_two_models_of_one_quantization_are_told_apart() -> None:
    assert set(named(variants(repository("a-Q8_0.gguf", "b-Q8_0.gguf")))) == {"a-Q8_0", "b-Q8_0"}


def test_names_that_lead_out_are_never_fetched() -> None:
    assert variants(repository("../a-Q8_0.gguf", "/b-Q4_0.gguf", ".c-Q4_0.gguf")) == ()


def test_mlx_needs_its_tag_configuration_and_weights() -> None:
    files = ("model.safetensors", "config.json", "README.md", "sub/x.json", "evil.py")
    found = variants(repository(*files, tags=("mlx",), name="mlx-community/Qwen3-4bit"))
    assert named(found) == {"4BIT": ["model.safetensors", "config.json"]}
    assert variants(repository(*files)) == ()
    assert variants(repository("config.json", tags=("mlx",))) == ()
    both = repository(*files, "a-Q8_0.gguf", tags=("mlx",))
    assert [one.format for one in variants(both)] == ["gguf"]
    assert [one.format for one in variants(both, "mlx")] == ["mlx"]


SIZES = repository(("a-Q2_K.gguf", 3 * GIB), ("a-Q4_K_M.gguf", 5 * GIB), ("a-Q8_0.gguf", 9 * GIB))


@pytest.mark.parametrize(
    ("free", "capacity", "best"),
    [(99, 99, "Q4_K_M"), (6, 99, "Q4_K_M"), (4, 4, "Q2_K"), (4, 99, "Q2_K"), (1, 6, "Q4_K_M"), (1, 1, None)],
)
def test_the_best_that_fits_is_proposed(free: int, capacity: int, best: str | None) -> None:
    found = proposed(variants(SIZES), Room(free * GIB, capacity * GIB))
    assert (found.quantization if found else None) == best


def test_without_four_bits_better_goes_before_worse() -> None:
    found = proposed(variants(repository(("a-Q3_K_M.gguf", 3), ("a-Q6_K.gguf", 6), ("a-F16.gguf", 16))), VAST)
    assert found is not None and found.quantization == "Q6_K"


def chosen(reference: Reference, room: Room = VAST) -> str:
    return choose(variants(SIZES), reference, room).quantization


def test_what_is_named_is_taken_whether_it_fits_or_not() -> None:
    assert chosen(Reference("owner", "repo", quantization="q8_0"), Room(0, 0)) == "Q8_0"
    assert chosen(Reference("owner", "repo", path="a-Q2_K.gguf"), Room(0, 0)) == "Q2_K"


def test_what_is_not_there_is_told_with_what_is() -> None:
    for reference in (
        Reference("owner", "repo", quantization="q5_0"),
        Reference("owner", "repo", path="b.gguf"),
        Reference("owner", "repo", path="a-Q8_0.gguf", quantization="q2_k"),
    ):
        with pytest.raises(NotFound, match=r"Q4_K_M|Q8_0"):
            chosen(reference)
    with pytest.raises(InvalidRequest, match="Q4_0, Q4_1"):
        choose(variants(repository("a-Q4_0.gguf", "a-Q4_1.gguf")), Reference("o", "r", quantization="q4"), VAST)
    with pytest.raises(InsufficientMemory):
        chosen(Reference("owner", "repo"), Room(GIB, GIB))
    with pytest.raises(NotFound):
        choose((), Reference("owner", "repo"), VAST)


def test_a_directory_limits_the_choice() -> None:
    files = repository("Q8_0/a-00001-of-00001.gguf", "Q4_K_M/a-00001-of-00001.gguf")
    assert choose(variants(files), Reference("o", "r", path="Q8_0"), VAST).quantization == "Q8_0"
