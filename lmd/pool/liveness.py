"""Whether the pool still acts: what a service manager's watchdog asks of it."""

from collections.abc import Iterable

from lmd.pool.instance import Instance, State


def overdue(instances: Iterable[Instance], now: float) -> str:
    """What is due and was not done, in words; "" when all is well. A model that is slow or hangs is no reason.

    True of a healthy pool for an instant, before the event loop comes to it: one that stays so is stuck.
    """
    for instance in instances:
        if instance.state is State.LOADING and instance.task is not None and instance.task.done():
            return f"the load of '{instance.id}' has ended, and nothing has come of it"
        if instance.state is State.DRAINING and instance.ending is not None and instance.ending.done():
            return f"'{instance.id}' has ended, and still counts"
        if instance.is_idle and (instance.expires_at <= now or instance.retiring or instance.replacement is not None):
            return f"'{instance.id}' should have left, and stays"
        if instance.state is State.QUEUED and any(waiter.deadline <= now for waiter in instance.waiters):
            return f"a request for '{instance.id}' waits beyond its time"
    return ""
