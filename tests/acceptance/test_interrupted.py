"""Commands are killed or interrupted anywhere; run again, they end as if nothing had been.

Where a command is comes from the processor time it has used, so that it is broken off at as many
places on a busy machine as on an idle one.
"""

import json
import os
import random
import re
import resource
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from acceptance.cluster import Cluster
from acceptance.processes import COMMAND, ask
from dolmen.testing.conformance.setting import LONG
from engines.programs import TIED

OBJECTS, GROWTH, TRIES = (1_500, 1.05, 200) if LONG else (600, 1.5, 40)
SPREAD = 0.2
"""Seconds of processor time: a command is given what one takes that has nothing to do, and a random
part of a time that begins with this and grows with every try.
"""
SIZES = (10, 3_000, 60_000, 5_000_000)


def content(number):
    rng = random.Random(number)
    return rng.randbytes(rng.choices(SIZES, (50, 45, 4, 1))[0])


def used(process):
    """Seconds of processor time a process has used."""
    fields = Path("/proc", str(process.pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def used_by_ended():
    """Seconds of processor time that processes have used which have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def uploaded(cluster, numbers):
    """The ids of the objects with these numbers."""
    ids = {}
    for number in numbers:
        status, _, said = ask(cluster.uploads[0], "POST", "/upload", content(number))
        assert status == 200, said
        ids[number] = json.loads(said)["id"]
    return ids


def test_every_command_ends_in_the_same_state_however_often_it_was_broken_off(tmp_path):
    rng = random.Random(11)
    ended = {}
    before = used_by_ended()
    subprocess.run([*COMMAND, "--version"], check=True, stdout=subprocess.DEVNULL)
    idle = used_by_ended() - before

    def broken_off(*words):
        """End a command again and again, after longer and longer, until it was done before that."""
        for at in range(TRIES):
            process = subprocess.Popen(
                [*TIED, *COMMAND, *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            limit = idle + rng.random() * SPREAD * GROWTH**at
            deadline = time.monotonic() + 120
            while process.poll() is None and used(process) < limit and time.monotonic() < deadline:
                time.sleep(0.005)  # nothing tells of processor time
            how = signal.SIGKILL if at % 2 else signal.SIGINT
            process.send_signal(how)
            out, _ = process.communicate(timeout=60)
            assert not re.search(r'File ".*dolmen/', out), out  # no traceback of ours
            # An export may be broken off between its end mark and its exit, and then says so.
            if process.returncode == 0 or "is a complete export" in out:
                return out
            assert process.returncode in (130, -how), (words, out)
            ended[words[0]] = ended.get(words[0], 0) + 1
        raise AssertionError(f"{words} never came to an end")

    with ExitStack() as leaving:
        cluster = Cluster(tmp_path, "abcd", copies=2, leaving=leaving)
        cluster.configure(repairing=False)
        config = ("--config", cluster.config)
        ids = uploaded(cluster, range(OBJECTS))
        gone = rng.sample(sorted(ids), OBJECTS // 2)
        for number in gone:
            status, _, said = ask(cluster.uploads[0], "DELETE", f"/objects/{ids.pop(number)}")
            assert status == 204, said

        cluster.wipe("c")
        broken_off("replicate", *config)
        cluster.configure(repairing=False, a=0)
        broken_off("drain", "a", *config)
        assert cluster.entries("a") == 0
        broken_off("gc", "--grace", "0", *config)
        assert "belong to no object" not in broken_off("check", "--data", *config)
        broken_off("scrub", f"http://127.0.0.1:{cluster.ports['b']}")
        archive, restored = tmp_path / "all.dolmen", f"volume:{tmp_path / 'restored'}"
        broken_off("export", archive, *config)
        broken_off("import", archive, restored)
        assert "no problems found" in broken_off("check", "--data", restored)

        # What was there all the time is what there is, in the cluster and in the archive.
        held = {name for each in "bcd" for name in cluster.held(each)}
        assert {name for name in held if re.fullmatch("[0-9a-f]{64}", name)} == {*ids.values()}
        for number, object_id in ids.items():
            status, _, data = ask(cluster.uploads[0], "GET", f"/fetch/{object_id}")
            assert (status, data) == (200, content(number))
        report = broken_off("replicate", restored, f"http://127.0.0.1:{cluster.ports['a']}")
        assert report
        assert {*cluster.held("a")} == held
        print(f"\ncommands broken off: {ended}")
