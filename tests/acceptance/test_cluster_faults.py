"""A cluster under a running workload is killed, wiped, paused, grown and drained.

When it settles, everything acknowledged is there in the wanted number of verified copies,
nothing deleted is back, and nothing is where it should not be.
"""

from __future__ import annotations

import collections
import hashlib
import http.client
import random
import threading
import time
from contextlib import ExitStack

from acceptance.cluster import Cluster
from acceptance.processes import ask
from dolmen.testing.conformance.setting import LONG

OPERATIONS = 100_000 if LONG else 5_000
"""So many are at least done while fault comes after fault."""
CLIENTS = 4
COPIES = 3
PRESENT, ABSENT = "present", "absent"


class Client(threading.Thread):
    """Puts, gets and deletes objects of its own, and knows what may have become of each."""

    def __init__(self, number, ports, counts):
        super().__init__()
        self.rng = random.Random(number)
        self.number, self.ports, self.counts = number, ports, counts
        self.ending = threading.Event()
        self.contents: dict[str, tuple[int, int]] = {}
        """Seed and size of the content of each id."""
        self.may_be: dict[str, set[str]] = {}
        self.wrong: list[str] = []

    def content(self, object_id):
        seed, size = self.contents[object_id]
        return random.Random(seed).randbytes(size)

    def run(self):
        while not self.ending.is_set():
            what = self.rng.choices(("new", "again", "get", "delete"), (40, 5, 40, 15))[0]
            known = [*self.may_be]
            if what == "new" or not known:
                self.put(self.new())
            else:
                object_id = self.rng.choice(known)
                {"again": self.put, "get": self.get, "delete": self.delete}[what](object_id)

    def new(self):
        empty = 20 if self.number else 0  # there is one empty object, of one client
        sizes = (empty, 20, 1_000, 4_000, 100_000, 6_000_000)
        size = self.rng.choices(sizes, (1, 30, 40, 20, 8, 0.5))[0]
        seed = self.number << 32 | len(self.contents)
        object_id = hashlib.sha256(random.Random(seed).randbytes(size)).hexdigest()
        self.contents[object_id] = seed, size
        self.may_be.setdefault(object_id, {ABSENT})
        return object_id

    def put(self, object_id):
        if self.ask("put", "POST", "/upload", self.content(object_id)) == 200:
            self.may_be[object_id] = {PRESENT}
        else:
            self.may_be[object_id].add(PRESENT)

    def delete(self, object_id):
        if self.ask("delete", "DELETE", f"/objects/{object_id}") == 204:
            self.may_be[object_id] = {ABSENT}
        else:
            self.may_be[object_id].add(ABSENT)

    def get(self, object_id):
        status = self.ask("get", "GET", f"/fetch/{object_id}", wanted=object_id)
        if self.may_be[object_id] == {PRESENT}:
            if status == 404:
                self.wrong.append(f"{object_id} was acknowledged, and is not found")
            elif status not in (0, 200):
                self.counts["get refused of what is there"] += 1
        if status == 200 and self.may_be[object_id] == {ABSENT}:
            # A server that missed the delete may answer until it has learnt of it.
            self.counts["stale get"] += 1

    def ask(self, what, method, target, body=None, wanted=None):
        try:
            status, _, said = ask(self.rng.choice(self.ports), method, target, body)
        except (OSError, http.client.HTTPException):
            status, said = 0, b""
        if wanted and status == 200 and said != self.content(wanted):
            self.wrong.append(f"{wanted} came back with other content")
        fine = status in (200, 204, 404)
        self.counts[what if fine else f"{what} refused ({status or 'not connected'})"] += 1
        return status


def deleted(clients):
    """What may have been deleted since it was put."""
    states = [item for client in clients for item in client.may_be.copy().items()]
    return {object_id for object_id, may_be in states if ABSENT in may_be}


def whole_again(cluster, name, before, clients):
    """Seconds until a wiped server holds again what it held, and was not deleted since."""
    began = time.monotonic()
    while before - deleted(clients) - cluster.held(name).keys():
        assert time.monotonic() < began + 120, "it was never filled again"
        time.sleep(0.2)  # other processes' work has nothing to wait on
    return time.monotonic() - began


def settled(port, object_id):
    """Status and body of an object, when every server is asked again that was left alone."""
    deadline = time.monotonic() + 60
    while True:
        status, _, body = ask(port, "GET", f"/fetch/{object_id}")
        if status != 503:
            return status, body
        assert time.monotonic() < deadline, body
        time.sleep(0.2)  # a server rests for a time that nothing ends


def test_a_cluster_loses_nothing_and_ends_in_its_place(tmp_path):
    with ExitStack() as leaving:
        cluster = Cluster(tmp_path, "abcde", copies=COPIES, leaving=leaving)
        counts: collections.Counter[str] = collections.Counter()
        clients = [Client(number, cluster.uploads, counts) for number in range(CLIENTS)]
        began = time.monotonic()
        for client in clients:
            client.start()
        leaving.callback(lambda: [client.ending.set() for client in clients])
        rng = random.Random(7)
        faults: collections.Counter[str] = collections.Counter()
        filled: list[float] = []

        def kill():
            name = rng.choice("bcde")
            cluster.kill(name)
            time.sleep(rng.uniform(0.5, 2))  # it is away that long
            cluster.start(name)

        def wipe():
            name = rng.choice("bcde")
            before = cluster.belonging(name).keys()
            cluster.wipe(name)
            filled.append(whole_again(cluster, name, before, clients))

        def pause():
            cluster.pause(rng.choice("bcde"), rng.uniform(0.5, 3))

        def fill():
            cluster.fill(rng.uniform(1, 3))

        def grow():
            cluster.start("f")
            cluster.configure(f=2)

        def drain():
            cluster.configure(a=0)
            cluster.until_done("drain", "a")

        plan = [kill, wipe, pause, grow, fill, kill, drain, wipe, pause]
        while plan or counts.total() < OPERATIONS:
            fault = plan.pop(0) if plan else rng.choice((kill, wipe, pause, fill))
            fault()
            faults[fault.__name__] += 1
            assert all(client.is_alive() for client in clients)
        for client in clients:
            client.ending.set()
        for client in clients:
            client.join()
        lasted = time.monotonic() - began
        assert not [wrong for client in clients for wrong in client.wrong]
        assert any("refused" in what for what in counts), "no request was refused"

        cluster.until_done("replicate")
        cluster.until_done("gc", "--grace", "0")
        cluster.until_done("check", "--data")
        assert cluster.entries("a") == 0
        lost, back = [], []
        for client in clients:
            for object_id, states in client.may_be.items():
                status, body = settled(cluster.uploads[1], object_id)
                assert status in (200, 404), body
                if status == 404 and ABSENT not in states:
                    lost.append(object_id)
                if status == 200 and PRESENT not in states:
                    back.append(object_id)
                if status == 200:
                    assert body == client.content(object_id)
        assert not lost
        assert not back

        # At rest, what is moved is what has to be.
        cluster.configure(repairing=False)
        needed = {"c wiped": sum(cluster.belonging("c").values())}
        cluster.wipe("c")
        copied = {"c wiped": cluster.replicate()}
        cluster.configure(repairing=False, a=1)
        needed["a added"] = sum(cluster.belonging("a").values())
        copied["a added"] = cluster.replicate()
        assert copied == needed
        print(
            f"\n{counts.total():,} operations in {lasted:.0f} s: {dict(counts)}\n"
            f"faults: {dict(faults)}; wiped servers were full again after "
            f"{', '.join(f'{each:.1f}' for each in filled)} s, under load\n"
            f"bytes copied: {copied}; that were needed: {needed}"
        )
