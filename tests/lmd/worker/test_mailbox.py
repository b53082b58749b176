import asyncio

import pytest

from lmd.errors import WorkerDied
from lmd.generation import FinishReason, TokenLogprob, Usage
from lmd.worker.mailbox import Mailbox
from lmd.worker.messages import Finished, JoinedOutput, Output, Prefilled

END = Finished(1, FinishReason.EOG, Usage())


@pytest.fixture
def closed():
    return []


@pytest.fixture
def mailbox(closed):
    return Mailbox(1, closed.append)


async def test_items_come_in_order_and_the_end_is_last(mailbox, closed):
    mailbox.put_prefilled(Prefilled(1, 3, 5))
    mailbox.put(Output(1, "a", 1))
    mailbox.finish(END)
    assert [item async for item in mailbox] == [Prefilled(1, 3, 5), Output(1, "a", 1), END]
    await mailbox.aclose()
    assert closed == []


async def test_a_slow_consumer_gets_what_came_meanwhile_as_one_item(mailbox):
    first, second = TokenLogprob(1, b"a", -0.1), TokenLogprob(2, b"b", -0.2)
    mailbox.put_prefilled(Prefilled(1, 1, 2))
    mailbox.put_prefilled(Prefilled(1, 2, 2))
    mailbox.put(Output(1, "a", 1, [first]))
    mailbox.put(Output(1, "", 1, []))
    mailbox.put(Output(1, "b", 2, [second]))
    assert await anext(mailbox) == Prefilled(1, 2, 2)
    assert await anext(mailbox) == JoinedOutput(1, "ab", 4, [first, second], [(1, 1), (0, 1), (1, 2)])


async def test_what_is_told_of_the_prompt_is_joined_too(mailbox):
    first, second = TokenLogprob(1, b"a", None), TokenLogprob(2, b"b", -0.2)
    mailbox.put_prefilled(Prefilled(1, 1, 3, [first]))
    mailbox.put_prefilled(Prefilled(1, 2, 3))
    mailbox.put_prefilled(Prefilled(1, 3, 3, [second]))
    assert await anext(mailbox) == Prefilled(1, 3, 3, [first, second])


async def test_one_step_wakes_a_waiting_consumer(mailbox):
    waiting = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    mailbox.put(Output(1, "a", 1))
    mailbox.put(Output(1, "b", 1))
    assert await waiting == JoinedOutput(1, "ab", 2, None, [(1, 1), (1, 1)])


async def test_a_cancelled_wait_loses_nothing(mailbox):
    waiting = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    mailbox.put(Output(1, "a", 1))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await anext(mailbox) == Output(1, "a", 1)


async def test_an_error_comes_after_what_was_put_and_once(mailbox):
    mailbox.put(Output(1, "a", 1))
    mailbox.fail(WorkerDied("gone"))
    mailbox.put(Output(1, "b", 1))
    assert await anext(mailbox) == Output(1, "a", 1)
    with pytest.raises(WorkerDied):
        await anext(mailbox)
    with pytest.raises(StopAsyncIteration):
        await anext(mailbox)


async def test_closing_early_tells_once_and_ends_a_waiting_consumer(mailbox, closed):
    waiting = asyncio.ensure_future(anext(mailbox, None))
    await asyncio.sleep(0)
    await mailbox.aclose()
    await mailbox.aclose()
    mailbox.put(Output(1, "late", 1))
    mailbox.finish(END)
    assert await waiting is None
    assert closed == [1]
    assert [item async for item in mailbox] == []


async def test_outputs_go_past_a_consumer_that_waits_and_to_one_that_does_not(mailbox):
    taken = []

    def direct(output):
        if output.text == "not this":
            return False
        taken.append(output.text)
        return True

    mailbox.direct = direct
    mailbox.put(Output(1, "a", 1))
    assert await anext(mailbox) == Output(1, "a", 1)
    waiting = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    mailbox.put(Output(1, "b", 1))
    mailbox.put(Output(1, "c", 1))
    await asyncio.sleep(0)
    assert not waiting.done()
    mailbox.put(Output(1, "not this", 1))
    mailbox.put(Output(1, "d", 1))
    assert await waiting == JoinedOutput(1, "not thisd", 2, None, [(8, 1), (1, 1)])
    assert taken == ["b", "c"]


async def test_what_goes_wrong_past_a_consumer_is_raised_to_it_and_ends_the_sequence(mailbox, closed):
    def direct(output):
        raise ValueError(output.text)

    mailbox.direct = direct
    waiting = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    mailbox.put(Output(1, "a", 1))
    mailbox.put(Output(1, "b", 1))
    mailbox.finish(END)
    with pytest.raises(ValueError, match="a"):
        await waiting
    with pytest.raises(StopAsyncIteration):
        await anext(mailbox)
    await mailbox.aclose()
    assert closed == []  # it had ended by itself


async def test_a_sequence_that_still_runs_is_cancelled_when_its_output_could_not_be_passed_on(mailbox, closed):
    def direct(output):
        raise ValueError(output.text)

    mailbox.direct = direct
    waiting = asyncio.ensure_future(anext(mailbox))
    await asyncio.sleep(0)
    mailbox.put(Output(1, "a", 1))
    with pytest.raises(ValueError, match="a"):
        await waiting
    await mailbox.aclose()
    assert closed == [1]
