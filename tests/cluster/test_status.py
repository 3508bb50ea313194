"""What a cluster lacks is told from digests alone."""

from __future__ import annotations

import asyncio
import json

import pytest

from dolmen.cluster.cluster import Cluster
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.status import cluster_status
from dolmen.payload import Bytes
from dolmen.replication.repair import Repair
from dolmen.stores.epoch import Seen
from dolmen.stores.memory import MemoryStore
from dolmen.testing import calls
from dolmen.testing.faulty import FaultyStore


async def nothing(_seconds: float) -> None:
    """Wait for no time at all."""


def made(weights: dict[str, float], stores: dict[str, FaultyStore], copies: int) -> Cluster:
    members = [Member(name, stores[name], weight) for name, weight in weights.items()]
    return Cluster([make_group("all", members, copies=copies, volatile=True)])


async def seen(cluster: Cluster) -> dict[str, dict[str, object]]:
    (group,) = await cluster_status(cluster)
    servers = group["servers"]
    assert isinstance(servers, list)
    return {server["server"]: server for server in servers}


async def test_what_is_missing_and_what_is_misplaced():
    stores = {name: FaultyStore(MemoryStore()) for name in "abcd"}
    cluster = made(dict.fromkeys("abcd", 1.0), stores, 2)
    for number in range(50):
        await calls.put(cluster, f"name-{number}", Bytes(b"data"))
    told = await seen(cluster)
    assert {(each["missing"], each["misplaced"]) for each in told.values()} == {(0, 0)}
    assert sum(each["blobs"] for each in told.values()) == 100
    held = told["b"]["blobs"]
    stores["b"].down = True
    told = await seen(cluster)
    assert (told["b"]["reachable"], told["b"]["missing"]) == (False, held)
    stores["b"].down = False
    stores["b"].store = MemoryStore()
    assert (await seen(cluster))["b"]["missing"] == held
    drained = made({"a": 0, "b": 1, "c": 1, "d": 1}, stores, 2)
    told = await seen(drained)
    assert told["a"]["misplaced"] == told["a"]["blobs"] > 0
    assert sum(each["missing"] for each in told.values()) > held


async def test_when_all_was_last_compared():
    stores = {name: FaultyStore(MemoryStore()) for name in "ab"}
    cluster = made(dict.fromkeys("ab", 1.0), stores, 2)
    assert (await seen(cluster))["a"]["compared_at"] is None
    await Repair(cluster.groups, Seen(0, ""), now=lambda: 1_234.5, pause=nothing).round()
    assert (await seen(cluster))["a"]["compared_at"] == 1_234.5
    await stores["b"].note("compared", json.dumps([1]).encode())
    assert (await seen(cluster))["b"]["compared_at"] is None


async def test_a_server_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    stores = {name: FaultyStore(MemoryStore()) for name in "ab"}
    cluster = made(dict.fromkeys("ab", 1.0), stores, 2)

    async def hang(_method: str, _name: str) -> None:
        await asyncio.Event().wait()

    stores["b"].pause = hang
    monkeypatch.setattr("dolmen.cluster.status.PATIENCE", 0.01)
    told = await seen(cluster)
    assert (told["a"]["reachable"], told["b"]["reachable"]) == (True, False)
    assert "did not answer" in str(told["b"]["detail"])
