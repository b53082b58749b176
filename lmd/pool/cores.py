"""Instances that compute at the same time share the cores: together they would want more than there are.

Threads that compute wait for each other after every matrix product, and they wait spinning: with more of them than
cores, one that is not scheduled keeps all the others of its instance, and of the others, from working.
"""

from collections.abc import Iterable

from lmd.pool.instance import Instance, State


def share_cores(instances: Iterable[Instance]) -> None:
    """Tell each worker that has something to do among how many; what it knows it is not told again."""
    busy = [instance for instance in instances if instance.leases and _needs_cores(instance)]
    for instance in busy:
        if instance.sharers != len(busy) and instance.worker is not None:
            instance.sharers = len(busy)
            instance.worker.share_cores(len(busy))


def _needs_cores(instance: Instance) -> bool:
    """Its layers are not all on a GPU."""
    loaded = instance.loaded
    return instance.state is State.READY and loaded is not None and loaded.gpu_layers <= loaded.n_layers
