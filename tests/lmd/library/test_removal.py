"""What goes with a model, and what stays."""

from collections.abc import Callable
from pathlib import Path

from lmd.library.catalog import Catalog
from lmd.library.removal import plan_removal, remove_files


def test_a_shared_vision_part_stays_until_the_last_model_goes(tmp_path: Path, put: Callable[..., Path]) -> None:
    first = put("owner/eyes/eyes-Q8_0.gguf", "Q8_0")
    second = put("owner/eyes/eyes-F16.gguf", "F16")
    vision = put("owner/eyes/mmproj-F16.gguf", "F16", general__architecture="clip", general__type="mmproj")
    catalog = Catalog([tmp_path / "models"])
    catalog.refresh()
    one, other = catalog.find("owner/eyes@q8_0"), catalog.find("owner/eyes@f16")
    plan = plan_removal(one, [other])
    assert (plan.files, plan.kept) == ((first,), (vision,))
    size = first.stat().st_size
    assert plan.size == size
    remove_files(plan, catalog.directories)
    assert not first.exists() and vision.exists() and second.exists()
    remove_files(plan_removal(other, []), catalog.directories)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path, put: Callable[..., Path]) -> None:
    real = put("a.gguf").rename(tmp_path / "elsewhere.gguf")
    (tmp_path / "models" / "b.gguf").symlink_to(real)
    catalog = Catalog([tmp_path / "models"])
    catalog.refresh()
    plan = plan_removal(catalog.find("b"), [])
    assert plan.size == 0
    remove_files(plan, catalog.directories)
    assert real.exists()
    assert catalog.refresh().removed == ("b",)
