"""Clusters of stores in memory, which fail on command."""

import time

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.names import partition_of
from dolmen.stores.memory import MemoryStore
from dolmen.testing.faulty import FaultyStore


class Time:
    """Seconds that go by only when a test lets them."""

    def __init__(self):
        self.passed = 0.0

    def __call__(self):
        return self.passed


def made(count=3, *, groups=1, store=MemoryStore, budget=None, now=time.monotonic, **numbers):
    """The stores of so many groups, and their cluster; member m of group g is named "gGmM"."""
    stores = [FaultyStore(store()) for _ in range(count * groups)]
    parts = [
        make_group(
            f"g{group}",
            [Member(f"g{group}m{m}", stores[group * count + m]) for m in range(count)],
            volatile=True,
            **numbers,
        )
        for group in range(groups)
    ]
    return stores, Cluster(parts, budget=budget, now=now)


def in_order(cluster, name):
    """The stores of a cluster, in the order in which a name is placed."""
    return [member.store for member in cluster.placement.of(partition_of(name)).order]


def asked(store, method):
    """How often, and forget it."""
    count = sum(1 for called, _ in store.calls if called == method)
    store.calls.clear()
    return count
