import asyncio

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lmd.api.idle import Idleness


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_an_open_exchange_is_no_idleness_and_its_end_begins_it() -> None:
    clock, begun, go_on = Clock(), asyncio.Event(), asyncio.Event()
    idleness = Idleness(clock)

    async def slow(request: web.Request) -> web.Response:
        begun.set()
        await go_on.wait()
        return web.Response()

    app = web.Application(middlewares=[idleness.middleware()])
    app.router.add_get("/", slow)
    async with TestClient(TestServer(app)) as client:
        clock.now += 5
        assert idleness.seconds() == 5
        asking = asyncio.create_task(client.get("/"))
        await begun.wait()
        clock.now += 60
        assert idleness.seconds() == 0
        quiet = asyncio.create_task(idleness.quiet())
        go_on.set()
        assert (await asking).status == 200
        await quiet
        assert idleness.seconds() == 0
        clock.now += 7
        assert idleness.seconds() == 7


async def test_a_refused_exchange_ends_too() -> None:
    idleness = Idleness()
    app = web.Application(middlewares=[idleness.middleware()])
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/nowhere")).status == 404
        await idleness.quiet()
