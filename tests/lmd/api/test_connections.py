"""A client that stalls is cut off, one that is slow is not."""

import asyncio
from typing import Any

from aiohttp import web

from lmd.api.connections import Connection


class Slow(asyncio.Transport):
    """Says of what is still to be sent one ``sizes`` after the other, and then always the last."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

    def abort(self) -> None:
        self.aborted.set()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def test_who_takes_a_large_piece_slowly_is_cut_off_only_when_it_takes_nothing_more() -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError

    connection = Connection(
        lambda: 0.001, lambda error, status: b"", web.Server(handler), loop=asyncio.get_running_loop()
    )
    transport = Slow(900, 600, 300, 100)
    connection.transport = transport
    connection.pause_writing()
    await asyncio.wait_for(transport.aborted.wait(), 10)
    assert transport.sizes == [100]
