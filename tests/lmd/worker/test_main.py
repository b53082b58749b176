"""The real worker, driven over its socket."""

import shutil
from pathlib import Path

import pytest

from lmd.errors import LoadFailed
from lmd.generation import SamplingParams
from lmd.loading import LoadParams
from lmd.worker.cgroup import anonymous_bytes
from lmd.worker.messages import Finished, Generate, Load, PromptText
from lmd.worker.process import WorkerProcess

MODELS = Path(__file__).parents[2] / "models"
SMALL = LoadParams(context_length=512, parallel=2)


@pytest.fixture
async def worker():
    worker = await WorkerProcess.spawn()
    yield worker
    await worker.stop(0)


@pytest.fixture
def model(tmp_path):
    return Path(shutil.copy(MODELS / "tiny-chat.gguf", tmp_path))


async def load(worker, model, params=SMALL):
    return await worker.load(Load(str(model), params), lambda fraction: None, 60)


async def say(worker, text="Hello"):
    params = SamplingParams(temperature=0.0, max_tokens=12)
    mailbox = worker.generate(Generate(0, [PromptText(text)], params, ignore_eos=True))
    said = ""
    async for item in mailbox:
        if isinstance(item, Finished):
            return said + item.text, item.usage.cached_tokens
        said += getattr(item, "text", "")
    raise AssertionError("an answer without an end")


def mapped(pid, path):
    """Bytes of the file that the process has in its page tables."""
    resident, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            ours = words[-1] == str(path)
        elif ours and words[0] == "Rss:":
            resident += int(words[1]) * 1024
    return resident


async def test_a_parked_worker_holds_neither_cache_nor_weights_and_serves_again_as_before(worker, model):
    before = await load(worker, model, LoadParams(context_length=32768, parallel=4))
    assert before.parks
    first, _ = await say(worker)
    busy = anonymous_bytes(worker.pid)
    assert mapped(worker.pid, model) > 0
    assert await worker.park(30)
    assert anonymous_bytes(worker.pid) < busy - before.kv_bytes
    assert mapped(worker.pid, model) == 0
    after = await load(worker, model, LoadParams(context_length=32768, parallel=4))
    assert (after.kv_bytes, after.context_length, after.parks) == (before.kv_bytes, before.context_length, True)
    assert await say(worker) == (first, 0)


async def test_the_weights_of_a_linked_file_leave_too(worker, model, tmp_path):
    blob = model.rename(tmp_path / "0123abcd")
    model.symlink_to(blob)
    await load(worker, model)
    await say(worker)
    assert mapped(worker.pid, blob) > 0
    assert await worker.park(30)
    assert mapped(worker.pid, blob) == 0


async def test_nothing_is_left_of_many_rounds(worker, model):
    for _ in range(3):  # what is allocated once
        await load(worker, model)
        await say(worker)
        assert await worker.park(30)
    before = anonymous_bytes(worker.pid), sum(1 for _ in Path(f"/proc/{worker.pid}/fd").iterdir())
    for _ in range(30):
        await load(worker, model)
        await say(worker)
        assert await worker.park(30)
    assert anonymous_bytes(worker.pid) < before[0] + 2 * 2**20
    assert sum(1 for _ in Path(f"/proc/{worker.pid}/fd").iterdir()) == before[1]


@pytest.mark.parametrize("how", ["renamed over", "written over"])
async def test_a_file_that_was_replaced_meanwhile_is_read_anew(worker, model, how):
    chat = await load(worker, model)
    assert await worker.park(30)
    if how == "renamed over":
        Path(shutil.copy(MODELS / "tiny-draft.gguf", model.with_suffix(".new"))).rename(model)
    else:
        shutil.copy(MODELS / "tiny-draft.gguf", model)
    draft = await load(worker, model)
    assert draft.n_params < chat.n_params
    assert draft.parks
    await say(worker)


async def test_a_file_that_is_gone_meanwhile_fails_the_load(worker, model):
    await load(worker, model)
    assert await worker.park(30)
    model.unlink()
    with pytest.raises(LoadFailed, match="no file"):
        await load(worker, model)


@pytest.mark.parametrize(
    "params", [LoadParams(mmap=False), LoadParams(mlock=True), LoadParams(draft_model="tiny-draft")], ids=str
)
async def test_what_holds_more_than_a_vocabulary_does_not_park(worker, model, params):
    draft = str(MODELS / "tiny-draft.gguf") if params.draft_model else None
    loaded = await worker.load(Load(str(model), params, draft_path=draft), lambda fraction: None, 60)
    assert not loaded.parks
