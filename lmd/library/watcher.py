"""Who is told of changes, at their own speed."""

import asyncio


class Watcher:
    """Ids of what changed since it was last asked for. Never grows beyond one entry for each."""

    def __init__(self) -> None:
        self._changed: dict[str, None] | None = {}
        self._wake = asyncio.Event()

    def put(self, id: str) -> None:
        if self._changed is not None:
            self._changed[id] = None
            self._wake.set()

    def end(self) -> None:
        self._changed = None
        self._wake.set()

    async def get(self) -> list[str] | None:
        await self._wake.wait()
        if self._changed is None:
            return None
        changed, self._changed = list(self._changed), {}
        self._wake.clear()
        return changed
