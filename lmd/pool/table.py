"""The instances that the pool knows, and how one is found."""

from collections.abc import Iterator
from itertools import count

from lmd.pool.instance import Instance, State
from lmd.pool.wanted import Origin, Wanted


class Table:
    """All instances that are not DEAD, in the order of their making. Finds; decides and changes nothing."""

    def __init__(self) -> None:
        self._by_serial: dict[int, Instance] = {}

    def __iter__(self) -> Iterator[Instance]:
        """A snapshot: the table may change on the way."""
        return iter(tuple(self._by_serial.values()))

    @property
    def is_empty(self) -> bool:
        return not self._by_serial

    def __getitem__(self, serial: int) -> Instance:
        return self._by_serial[serial]

    def add(self, instance: Instance) -> None:
        self._by_serial[instance.serial] = instance

    def remove(self, instance: Instance) -> None:
        self._by_serial.pop(instance.serial, None)

    def queue(self) -> list[Instance]:
        """Those that wait for memory, first in first."""
        return [instance for instance in self if instance.state is State.QUEUED]

    def residents(self) -> list[Instance]:
        """Those that have memory."""
        return [instance for instance in self if instance.has_memory]

    @property
    def leases(self) -> int:
        return sum(instance.leases for instance in self._by_serial.values())

    def by_id(self, id: str) -> Instance | None:
        """The instance of that id which is not being ended."""
        return next((i for i in self if i.id == id and i.state is not State.DRAINING), None)

    def draining(self, id: str) -> Instance | None:
        return next((i for i in self if i.id == id and i.state is State.DRAINING), None)

    def free_id(self, id: str) -> str:
        """``id``, or with a number where it is taken."""
        taken = {instance.id for instance in self}
        return next(c for n in count(1) if (c := id if n == 1 else f"{id}:{n}") not in taken)

    def match(self, wanted: Wanted) -> Instance | None:
        """The instance that serves this; of several, one that is ready."""
        usable = [instance for instance in self if instance.is_usable]
        same = [instance for instance in usable if instance.key == wanted.key]
        stale = [i for i in usable if i.replacement is not None and i.replacement.key == wanted.key]
        # `lmctl load NAME --context-length …` decides how NAME is loaded, for requests that only name it.
        chosen = [
            instance
            for instance in usable
            if wanted.origin is Origin.JIT
            and instance.origin is Origin.EXPLICIT
            and instance.id == wanted.id
            and (wanted.name in instance.names or instance.replacement is not None)
            and instance.wanted.model.path == wanted.model.path
            and instance.key.draft_path == wanted.key.draft_path
        ]
        ready = [instance for instance in (*same, *stale) if instance.state is State.READY]
        return next(iter((*ready, *chosen, *same)), None)

    def last_to_replace(self, instance: Instance) -> Instance:
        """The newest load that is to take its place, or the place of one that is to; itself where none is."""
        chain = [instance]
        for other in self:  # in the order of their making: who replaces comes after what it replaces
            if other.replaces is chain[-1]:
                chain.append(other)
        return next(other for other in reversed(chain) if other.state is not State.DRAINING)

    def twin(self, queued: Instance) -> Instance | None:
        """An older instance of the same key that stays, closing or not. None for a load that replaces another."""
        if queued.replaces is not None:
            return None
        return next(
            (
                instance
                for instance in self
                if instance.serial < queued.serial
                and instance.key == queued.key
                and instance.state in {State.QUEUED, State.LOADING, State.READY}
                and not instance.retiring
            ),
            None,
        )
