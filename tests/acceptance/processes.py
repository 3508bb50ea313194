"""dolmen as its users run it: commands in processes of their own, and plain HTTP."""

import hashlib
import http.client
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from engines.programs import TIED

BLOCK = 1 << 20


COMMAND = (sys.executable, "-c", "from dolmen.cli import main; main()")


class Process:
    """A server command in a process of its own."""

    def __init__(self, *arguments, inside=()):
        self.arguments = [str(argument) for argument in arguments]
        self.inside = inside
        self.start()

    def start(self):
        command = [*TIED, *self.inside, *COMMAND, *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()  # printed once the ports are bound
        assert "http://" in line, f"{self.arguments} did not start"

    @property
    def peak_memory(self):
        """The most it ever held, in bytes."""
        status = Path("/proc", str(self.process.pid), "status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.process.stdout.close()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def until_alive(port):
    """Wait until a server answers; it is bound already, so the first request just waits."""
    for _ in range(600):
        try:
            status, _, _ = ask(port, "GET", "/alive")
        except OSError:
            time.sleep(0.05)
            continue
        if status == 200:
            return
    raise AssertionError(f"nothing answers on port {port}")


def ask(port, method, target, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def check_all(port, wanted):
    """Every object comes back with the digest and the size it should have."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for object_id, size in wanted.items():
        connection.request("GET", f"/fetch/{object_id}")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        hasher, got = hashlib.sha256(), 0
        while piece := response.read(BLOCK):
            hasher.update(piece)
            got += len(piece)
        assert (hasher.hexdigest(), got) == (object_id, size)
    connection.close()


def generated(block):
    """The block of the large file at this number: incompressible, no two alike."""
    return random.Random(block).randbytes(BLOCK)


class Generated:
    """The large file as something http.client sends, and its digest."""

    def __init__(self, size):
        self.size = size
        self.hasher = hashlib.sha256()

    def __iter__(self):
        for block in range(self.size // BLOCK):
            data = generated(block)
            self.hasher.update(data)
            yield data


def replicate(source, destination):
    """`dolmen replicate` between two store URLs."""
    command = [*COMMAND, "replicate", source, destination]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def wipe(folder: Path) -> None:
    """Remove a volume whose server was killed; those beside it may be on their way out."""
    for _ in range(100):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:  # something was gone before us
            continue
        return
