"""A model that does what it is told, for tests of what it must not be able to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hosts import RunningHost, tensors
from packages import write_package

PROBING = '''
import ctypes
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np


def tcp(port):
    with socket.create_connection(("127.0.0.1", int(port)), 5):
        return "connected"


def udp(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.sendto(b"x", (address, 53))


def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        return "connected"


def read(path):
    return len(Path(path).read_bytes())


def names(path):
    return sorted(os.listdir(path))


def write(path):
    return Path(path).write_text("x")


def children(count):
    """Fork so many that wait; say how many there could be."""
    pids, reason = [], ""
    for _ in range(int(count)):
        try:
            pid = os.fork()
        except OSError as error:
            reason = type(error).__name__
            break
        if not pid:
            signal.pause()
        pids.append(pid)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [len(pids), reason]


def grandchild(name):
    """One in a session of its own that ends on no polite signal."""
    pid = os.fork()
    if not pid:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
        if not os.fork():
            while True:
                signal.pause()
        os._exit(0)
    os.waitpid(pid, 0)
    return "left"


def setuid(number):
    os.setuid(int(number))
    return os.getuid()


def mount(path):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", path.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    return "mounted"


def unshare(flags):
    """Make namespaces of its own, in which it would be root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(int(flags)):
        raise OSError(ctypes.get_errno(), "unshare")
    return "unshared"


def kill(pid):
    os.kill(int(pid), signal.SIGTERM)
    return "killed"


def affinity(cpus):
    """Ask for other CPUs, say which ones it has then."""
    os.sched_setaffinity(0, json.loads(cpus))
    return sorted(os.sched_getaffinity(0))


def environment(name):
    return os.environ.get(name)


def threads(_):
    return len(os.listdir("/proc/self/task"))


def link(path):
    return os.readlink(path)


def core(_):
    import resource
    return resource.getrlimit(resource.RLIMIT_CORE)


def allocate(_):
    held = []
    while True:
        held.append(bytearray(8 << 20))


def leave(code):
    os._exit(int(code))


def crash(_):
    ctypes.string_at(13)


def hang(_):
    while True:
        pass


def double(value):
    return 2 * float(value)


ACTIONS = {f.__name__: f for f in (
    tcp, udp, connect, read, names, write, children, grandchild, setuid, mount, unshare, kill, affinity, environment,
    threads, link, core, allocate, leave, crash, hang, double)}


class Model:
    def load(self, package):
        if (package / "at_load").exists():
            for line in (package / "at_load").read_text().splitlines():
                self.act(line.encode())

    def act(self, text):
        name, _, argument = text.decode().partition(" ")
        try:
            return json.dumps(ACTIONS[name](argument))
        except Exception as error:
            return json.dumps(f"refused: {type(error).__name__}: {error}")

    def predict(self, inputs):
        texts = inputs["do"]
        said = np.empty(texts.shape, dtype=object)
        said.ravel()[:] = [self.act(text) if text else "" for text in texts.ravel()]
        return {"said": said}
'''


def write_probing(repository: Path, name: str = "probing", **tables: Any) -> Path:
    """Write it; `tables` of its `model.toml`."""
    limits = {"timeout_ms": 20_000, "max_batch_rows": 1, "retry": False} | tables.pop("limits", {})
    return write_package(
        repository,
        name,
        PROBING,
        inputs=[("do", "BYTES", [-1, 1])],
        outputs=[("said", "BYTES", [-1, 1])],
        limits=limits,
        **tables,
    )


def told(host: RunningHost, action: str, model: str = "probing") -> Any:
    """Have the model do something; what came of it, or its host's status code and error code."""
    import json

    answer = host.infer(model, tensors(do=("BYTES", [1, 1], [action])))
    if answer.status != 200:
        return answer.error
    return json.loads(answer.document["outputs"][0]["data"][0])
