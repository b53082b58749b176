from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lmd.engine.llama import Backend
from tests.lmd.engine.driver import Driver


@pytest.fixture(scope="session")
def backend() -> Backend:
    return Backend()


@pytest.fixture
def make(backend: Backend) -> Iterator[Callable[..., Driver]]:
    made: list[Driver] = []

    def build(**params: Any) -> Driver:
        made.append(Driver(backend, **{"context_length": 1024, "threads": 1, **params}))
        return made[-1]

    yield build
    for driver in made:
        driver.close()


@pytest.fixture
def driver(make: Callable[..., Driver]) -> Driver:
    return make()
