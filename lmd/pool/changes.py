"""Tells subscribers what changes in the pool."""

import asyncio
from collections.abc import AsyncIterator

from lmd.protocol import InstanceChanged


class Changes:
    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    def tell(self, change: InstanceChanged) -> None:
        for subscription in self._subscriptions:
            subscription.put(change)

    def subscribe(self) -> "Subscription":
        subscription = Subscription(self._subscriptions)
        self._subscriptions.add(subscription)
        return subscription

    def end(self) -> None:
        """Nothing more will change: every subscription ends after what it has not read yet."""
        for subscription in list(self._subscriptions):
            subscription.end()


class Subscription(AsyncIterator[InstanceChanged]):
    """Changes from the moment of subscribing. A slow reader finds the latest one of each instance, and no more."""

    def __init__(self, subscriptions: "set[Subscription]") -> None:
        self._subscriptions = subscriptions
        self._pending: dict[str, InstanceChanged] = {}
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, change: InstanceChanged) -> None:
        self._pending.pop(change.instance.id, None)
        self._pending[change.instance.id] = change
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._subscriptions.discard(self)
        self._wake.set()

    async def __anext__(self) -> InstanceChanged:
        while not self._pending:
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._pending.pop(next(iter(self._pending)))

    async def aclose(self) -> None:
        """Listen no more. Idempotent."""
        self.end()
