"""A cluster of real servers that a test kills, wipes, pauses, grows and drains."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from urllib.parse import quote

from acceptance.processes import COMMAND, Process, ask, free_ports, until_alive
from dolmen.cluster.groups import Member, make_group
from dolmen.cluster.placement import Placement
from dolmen.names import partition_of
from dolmen.stores.memory import MemoryStore
from engines.programs import TIED

ZONES = {"a": "left", "b": "left", "c": "right", "d": "right", "e": "right", "f": "left"}
SMALL = "e"
"""The server that has a small disk."""
LINES = {"Accept": "application/x-ndjson"}
_DISK = 2 << 30
_PATIENCE = 120


class SmallDisk:
    """A disk of its own for a server, in memory, seen only from a namespace of its own.

    The server may be killed and started again; the disk lasts as long as the process that
    holds the namespace.
    """

    def __init__(self, folder, size):
        self.folder = folder
        folder.mkdir()
        mount = f"mount -t tmpfs -o size={size} none {shlex.quote(str(folder))}"
        hold = f"{mount} && echo ready && exec sleep infinity"
        self.holder = subprocess.Popen(
            [*TIED, "unshare", "--map-root-user", "--mount", "sh", "-c", hold],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout.readline() == "ready\n", "no disk for it: user namespaces?"
        pid = str(self.holder.pid)
        self.inside = ("nsenter", "--user", "--mount", "--preserve-credentials", "--target", pid)

    def run(self, command):
        """Run a line of shell on this disk, in its folder."""
        line = f"cd {shlex.quote(str(self.folder))} && {command}"
        subprocess.run([*self.inside, "sh", "-c", line], check=True)

    def fill(self, left):
        """Use all of it but so many bytes."""
        free = "$(df --output=avail -B1 . | tail -1)"
        some = f"fallocate -l $(({free} - {left})) full 2>/dev/null"
        self.run(" || ".join([some] * 20))  # others write to it meanwhile

    def release(self):
        """Give back what `fill` used."""
        self.run("rm full")

    def end(self):
        self.holder.kill()
        self.holder.wait()
        self.holder.stdout.close()


class Cluster:
    """Blob servers on volumes, two API servers, one of which repairs, and a replicator."""

    def __init__(self, folder, names, *, copies, leaving: ExitStack):
        self.folder, self.copies = folder, copies
        ports = free_ports(len(ZONES) + 4)
        self.ports = dict(zip([*ZONES, "up", "down", "up2", "down2"], ports, strict=True))
        self.config = folder / "cluster.toml"
        self.weights = dict.fromkeys(names, 1)
        self.epoch = 0
        self.servers: dict[str, Process] = {}
        self.apis: dict[str, Process] = {}
        self.replicator: subprocess.Popen | None = None
        self.disk = SmallDisk(folder / SMALL, _DISK)
        leaving.callback(self.end)
        for name in names:
            self.start(name)
        self.configure()

    @property
    def uploads(self):
        return [self.ports["up"], self.ports["up2"]]

    def configure(self, *, repairing=True, **weights):
        """Take a new configuration into use, an API server after the other."""
        self.weights.update(weights)
        self.epoch += 1
        lines = [f"epoch = {self.epoch}", "[[groups]]", 'name = "main"', f"copies = {self.copies}"]
        for name, weight in self.weights.items():
            lines += [
                *("[[groups.servers]]", f'name = "{name}"', f'zone = "{ZONES[name]}"'),
                *(f'url = "http://127.0.0.1:{self.ports[name]}"', f"weight = {weight}"),
            ]
        self.config.write_text("\n".join([*lines, ""]))
        for api, (up, down) in {"one": ("up", "down"), "two": ("up2", "down2")}.items():
            if api in self.apis:
                self.apis[api].end()
            self.apis[api] = Process(
                *("api-server", "--config", self.config),
                *("--listen", f"127.0.0.1:{self.ports[up]}"),
                *("--download-listen", f"127.0.0.1:{self.ports[down]}"),
                *(() if api == "one" and repairing else ("--no-repair",)),
            )
            until_alive(self.ports[up])
        self._end_replicator()
        if repairing:
            words = ["replicate", "--config", str(self.config), "--watch"]
            with (self.folder / "replicated").open("ab") as said:
                self.replicator = subprocess.Popen(
                    [*TIED, *COMMAND, *words], stdout=said, stderr=said
                )

    def start(self, name):
        """Start a blob server, on what its folder holds."""
        listen = f"127.0.0.1:{self.ports[name]}"
        (self.folder / name).mkdir(exist_ok=True)
        store = f"volume:{self.folder / name / 'data'}"
        inside = self.disk.inside if name == SMALL else ()
        self.servers[name] = Process(
            "blob-server", "--store", store, "--listen", listen, inside=inside
        )
        until_alive(self.ports[name])

    def kill(self, name):
        """End a blob server in the middle of whatever it does."""
        self.servers.pop(name).kill()

    def wipe(self, name):
        """Lose all that a blob server held."""
        self.kill(name)
        # A process beside the server may still be ending, with files open there.
        if name == SMALL:
            self.disk.run("mv data lost && rm -rf lost")
        else:
            lost = (self.folder / name).rename(self.folder / f"{name}.{time.monotonic_ns()}")
            shutil.rmtree(lost, ignore_errors=True)
        self.start(name)

    def fill(self, seconds):
        """Let the disk of a server be full for a while."""
        self.disk.fill(4 << 20)
        until = time.monotonic() + seconds
        port, probe = self.ports[SMALL], f"probe-{self.epoch}-{time.monotonic_ns()}"
        # A server learns how much room there is with each write: the first may still be taken.
        refused = [ask(port, "PUT", f"/blob/{probe}-{i}", bytes(2 << 20))[0] for i in range(2)][-1]
        time.sleep(max(0, until - time.monotonic()))  # it is full that long
        # Clients may delete one between its listing and its reading.
        read = {ask(port, "GET", f"/blob/{each}")[0] for each in sorted(self.held(SMALL))[:5]}
        self.disk.release()
        assert refused == 507, refused
        assert 200 in read, read
        assert read <= {200, 404}, read

    def pause(self, name, seconds):
        """Let a blob server answer nothing for a while."""
        process = self.servers[name].process
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)  # the pause itself
        process.send_signal(signal.SIGCONT)

    def held(self, name):
        """The sizes of the blobs a blob server lists, by name."""
        sizes, cursor = {}, ""
        while cursor is not None:
            target = "/blobs?limit=5000" + (cursor and f"&cursor={quote(cursor)}")
            said = ask(self.ports[name], "GET", target, headers=LINES)[2]
            cursor = None
            for line in map(json.loads, said.splitlines()):
                if "next" in line:
                    cursor = line["next"]
                else:
                    sizes[line["name"]] = line["size"]
        return sizes

    def belonging(self, name):
        """The sizes of the blobs that the running servers hold and this one should."""
        members = [
            Member(each, MemoryStore(), weight, ZONES[each])
            for each, weight in self.weights.items()
        ]
        group = make_group("main", members, copies=self.copies, volatile=True)
        placement = Placement([group])
        sizes = {blob: size for server in self.servers for blob, size in self.held(server).items()}
        return {
            blob: size
            for blob, size in sizes.items()
            if name in (member.name for member in placement.of(partition_of(blob)).rightful)
        }

    def entries(self, name):
        """How many names a blob server holds, deleted ones too."""
        return json.loads(ask(self.ports[name], "GET", "/status")[2])["entries"]

    def dolmen(self, *words):
        """Exit status and output of a command on this cluster."""
        command = [*COMMAND, *map(str, words), "--config", str(self.config)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        return ended.returncode, ended.stdout + ended.stderr

    def until_done(self, *words):
        """Run a command until its exit status is 0."""
        deadline = time.monotonic() + _PATIENCE
        while (ended := self.dolmen(*words))[0]:
            assert time.monotonic() < deadline, ended
        return ended[1]

    def replicate(self):
        """Bytes copied by one `dolmen replicate` that leaves everything in its place."""
        status, said = self.dolmen("replicate", "--json")
        assert status == 0, said
        return sum(json.loads(line).get("bytes", 0) for line in said.splitlines())

    def _end_replicator(self):
        if self.replicator is not None:
            self.replicator.send_signal(signal.SIGINT)
            self.replicator.wait(60)
            self.replicator = None

    def end(self):
        """End everything."""
        self._end_replicator()
        for process in [*self.apis.values(), *self.servers.values()]:
            process.end()
        self.disk.end()
