"""How many threads compute, alone and beside other instances."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import llama_cpp.llama_cpp as native
import pytest

from lmd.engine.embedding import EmbeddingInstance
from lmd.engine.llama import Backend
from lmd.loading import LoadParams
from lmd.worker.main import WorkerMain
from lmd.worker.messages import ShareCores
from tests.lmd.engine.driver import TINY, Driver, Recorder, chat

Make = Callable[..., Driver]


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmd.engine.opening.default_threads", lambda: 4)


def threads(driver: Driver) -> tuple[int, int]:
    context = driver.instance._context.pointer
    return native.llama_n_threads(context), native.llama_n_threads_batch(context)


def test_instances_that_are_busy_at_once_take_a_part_of_the_cores_each(make: Make) -> None:
    driver = make(threads=None)
    assert threads(driver) == (4, 4)
    expected = driver.ask(chat("Count to 20.")).text
    for n_busy, n in ((2, 2), (3, 1), (9, 1), (1, 4)):
        driver.instance.share_cores(n_busy)
        assert threads(driver) == (n, n)
        assert driver.ask(chat("Count to 20."), raw={"cache_prompt": False}).text == expected


def test_a_number_of_threads_that_was_asked_for_stays(make: Make) -> None:
    driver = make(threads=3)
    driver.instance.share_cores(2)
    assert threads(driver) == (3, 3)


def test_the_worker_does_as_it_is_told(make: Make) -> None:
    driver = make(threads=None)
    WorkerMain._take(cast(WorkerMain, SimpleNamespace(_instance=driver.instance)), ShareCores(2))
    assert threads(driver) == (2, 2)


def test_an_embedding_model_shares_too(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmd.engine.embedding.default_threads", lambda: 4)
    instance = EmbeddingInstance(backend, str(TINY), LoadParams(context_length=64), Recorder())
    instance.share_cores(2)
    assert native.llama_n_threads(instance._context.pointer) == 2
    instance.close()
