"""One host of a fleet: a disk above the image, a network namespace, and Debian's own systemd in systemd-nspawn.

The disk is mounted in a mount namespace of the host's own, and the network namespace is held by a process: both end
with the processes, and nothing of them is ever in the machine's own namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pens import Pen

NETWORK: Final = "10.77.0"
"""The same in every fleet: none can see another."""
CONTROLLER_ADDRESS: Final = f"{NETWORK}.1"
END_LIMIT_S: Final = 15.0
_MOUNT: Final = 'mount -t overlay -o "$1" host "$2" && shift 2 && exec "$@"'


class Namespace:
    """A network namespace, there until its processes are killed; its number is nobody else's until it is closed."""

    def __init__(self, pen: Pen) -> None:
        self._holder = subprocess.Popen(
            pen.entered(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        with self._holder.stdout as output:
            output.read(1)  # it has unshared
        self.path = Path(f"/proc/{self._holder.pid}/ns/net")
        # The kernel gives the number of a namespace that is gone to the next, whoever makes it.
        self._number = os.open(self.path, os.O_RDONLY)
        self.inode = os.fstat(self._number).st_ino
        self.pid = self._holder.pid
        assert self.inode != Path("/proc/self/ns/net").stat().st_ino, "unshare did not give a network namespace"

    def entered(self, argv: Sequence[str | Path]) -> list[str]:
        """Give the command that does what `argv` does, in the namespace. (`ip netns exec` would hide the cgroups.)"""
        return ["nsenter", f"--net={self.path}", "--", *map(str, argv)]

    def ip(self, *commands: str) -> None:
        """Run commands of `ip` in it."""
        done = subprocess.run(
            self.entered(["ip", "-batch", "-"]),
            input="\n".join(commands),
            capture_output=True,
            text=True,
            timeout=END_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"ip could not do {commands}: {done.stderr}"

    def released(self) -> None:
        """Reap the holder, once it was killed."""
        self._holder.wait(END_LIMIT_S)

    def close(self) -> None:
        """Let its number go, once nothing is left to be found by it."""
        os.close(self._number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What is a host's own on its disk."""

    name: str
    address: str
    host_key: Path
    authorized_key: str
    neighbours: dict[str, str]
    """Names and addresses for /etc/hosts."""


class Machine:
    """A host that can be switched on and off; its disk stays as it is meanwhile."""

    def __init__(self, identity: Identity, *, directory: Path, root: Path, fleet: str, pen: Pen, network: Namespace):
        self.name = identity.name
        self.address = identity.address
        self.disk = directory / "disk"
        """What it has written; below is the image."""
        self.console = directory / "console.log"
        self.network = Namespace(pen)
        self._pen = pen
        self._machine_name = f"{fleet}-{identity.name}"
        self._controller = network
        self._mount = directory / "root"
        self._work = directory / "work"
        # Nobody needs it after the machine's own power cut: writing it out would hold up each switching off.
        self._layers = f"lowerdir={root},upperdir={self.disk},workdir={self._work},volatile"
        self._nspawn: subprocess.Popen[bytes] | None = None
        for path in (directory, self.disk, self._work, self._mount):
            path.mkdir(mode=0o755)
        _write_identity(self.disk, identity)
        self._plug()

    def _plug(self) -> None:
        """Put a cable between the host and the controller's bridge."""
        self._controller.ip(
            f"link add {self.name} type veth peer name host0 netns {self.network.pid}",
            f"link set {self.name} master fleet",
        )
        self.network.ip(
            "link set lo up",
            f"address add {self.address}/24 dev host0",
            "link set host0 up",
            f"route add default via {CONTROLLER_ADDRESS}",
        )

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self._nspawn is not None and self._nspawn.poll() is None

    def switch_on(self) -> None:
        """Start it and do not wait until it is up."""
        assert not self.is_on, f"{self.name} is on"
        self._controller.ip(f"link set {self.name} up")
        # The kernel's mark that what is here may never have been written out; but this machine has not gone down.
        shutil.rmtree(self._work / "work/incompat", ignore_errors=True)
        command = ["unshare", "--mount", "--propagation=slave"]
        command += ["sh", "-c", _MOUNT, "sh", self._layers, str(self._mount)]
        command += ["systemd-nspawn", "--quiet", f"--directory={self._mount}", f"--machine={self._machine_name}"]
        command += [f"--hostname={self.name}", "--register=no", "--keep-unit", "--console=pipe"]
        command += ["--capability=CAP_NET_ADMIN"]  # as on any host: the network is its own
        command += [f"--network-namespace-path={self.network.path}", "--kill-signal=SIGRTMIN+3"]
        command += ["--resolv-conf=off", "--timezone=off", "--link-journal=no", "/sbin/initwrap"]
        settings = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"}
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                self._pen.entered(command),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": os.environ["PATH"], **settings},
                start_new_session=True,
            )

    def switch_off(self) -> None:
        """Pull its plugs: nobody hears of it again, and no process of it ends in order."""
        assert self._nspawn is not None and self.is_on, f"{self.name} is off"
        self._controller.ip(f"link set {self.name} down")
        # The kernel kills all of a container with its process 1; nspawn itself then ends and cleans up after itself.
        os.kill(self._leader(), 9)
        self._nspawn.wait(END_LIMIT_S)

    def _leader(self) -> int:
        """Find the host's process 1 among the machine's."""
        deadline = time.monotonic() + END_LIMIT_S
        while time.monotonic() < deadline:
            for pid in self._pen.pids():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if any(line.startswith("NSpid:") and line.split()[2:] == ["1"] for line in status.splitlines()):
                    return pid
            time.sleep(0.01)
        raise AssertionError(f"{self.name} has no process 1; its console says:\n{self.last_words()}")

    def last_words(self) -> str:
        """What was written to its console last."""
        return self.console.read_text(errors="replace")[-4000:] if self.console.exists() else ""

    def released(self) -> None:
        """Reap what was killed with the pen."""
        self.network.released()
        if self._nspawn is not None:
            self._nspawn.wait(END_LIMIT_S)


def _write_identity(disk: Path, identity: Identity) -> None:
    """Write to a new disk what makes it this host's."""
    neighbours = "".join(f"{address}\t{name}\n" for name, address in identity.neighbours.items())
    texts = {
        "etc/hostname": f"{identity.name}\n",
        "etc/machine-id": f"{uuid.uuid4().hex}\n",
        "etc/hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n{neighbours}",
        "etc/ssh/ssh_host_ed25519_key.pub": identity.host_key.with_suffix(".pub").read_text(),
        "etc/apt/sources.list": f"deb [trusted=yes] http://{CONTROLLER_ADDRESS}/packages ./\n",
        "etc/apt/sources.list.d/0000sources.sources": "",
    }
    for name, text in texts.items():
        path = disk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (disk / "var/log/journal").mkdir(parents=True)  # so that the journal is kept, also of a host without power
    secrets = {
        "etc/ssh/ssh_host_ed25519_key": identity.host_key.read_text(),
        "root/.ssh/authorized_keys": identity.authorized_key,
    }
    for name, text in secrets.items():
        path = disk / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
    (disk / "root").chmod(0o700)
    (disk / "root/.ssh").chmod(0o700)
