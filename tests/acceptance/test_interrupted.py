"""Commands are killed or interrupted anywhere; run again, they end as if nothing had been."""

import json
import random
import re
import signal
import subprocess
from contextlib import ExitStack

from acceptance.cluster import Cluster
from acceptance.processes import COMMAND, ask
from engines.programs import TIED

OBJECTS, TRIES = 1_500, 40
START, MORE = 0.8, 0.4
"""Seconds a command is given at first, and more of them every time."""
SIZES = (10, 3_000, 60_000, 5_000_000)


def content(number):
    rng = random.Random(number)
    return rng.randbytes(rng.choices(SIZES, (50, 45, 4, 1))[0])


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

    def broken_off(*words):
        """End a command again and again, after longer and longer, until it was done before that."""
        for at in range(TRIES):
            process = subprocess.Popen(
                [*TIED, *COMMAND, *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                out, _ = process.communicate(timeout=rng.uniform(0.5, 1) * (START + at * MORE))
            except subprocess.TimeoutExpired:
                how = signal.SIGKILL if at % 2 else signal.SIGINT
                process.send_signal(how)
                out, _ = process.communicate(timeout=60)
            assert not re.search(r'File ".*dolmen/', out), out  # no traceback of ours
            if process.returncode == 0:
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
