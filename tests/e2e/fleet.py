"""A real fleet on one machine: bare Debian hosts with systemd and sshd, a balancer, and a controller, over SSH.

    with Fleet() as fleet:
        fleet.run_in_controller(["ansible-playbook", "-i", fleet.inventory, "ansible/site.yml"], limit_s=300)
        fleet.ssh("h1", ["systemctl", "is-active", "modelhost"])

All of it is in network namespaces, mount namespaces and cgroups of the fleet's own: several fleets do not see each
other, and the machine's own network does not see them. Needs root, cgroup v1 and Debian's systemd-container,
mmdebstrap, iproute2, openssh-client; `missing` says what is not there. The image is made once for a machine
(images.py, a minute); after that a fleet boots in seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import images
from machines import CONTROLLER_ADDRESS, NETWORK, Identity, Machine, Namespace
from pens import Pen, described, own_cgroups, start_time

CHECKOUT: Final = Path(__file__).resolve().parents[2]
REQUIRED: Final = "CI_REQUIRE_FLEET"
"""With this in the environment the tests fail where a fleet cannot run; otherwise they are skipped."""
STATES: Final = Path("/run/modelhost-fleets")
"""One file for each fleet that is there, so that the next can clean up after one that was killed."""
HOSTS: Final = ("h1", "h2", "h3")
BALANCER: Final = "balancer"
BOOT_LIMIT_S: Final = 90.0
COMMAND_LIMIT_S: Final = 60.0
REMOVE_LIMIT_S: Final = 300.0


class CommandFailed(Exception):
    """A command in the controller or on a host ended with another code than 0; the text has all it wrote."""


class Fleet:
    """Hosts that are bare when they come up. Use it as a context manager, or `start` and `close`."""

    def __init__(self, hosts: Sequence[str] = HOSTS, *, balancer: bool = True) -> None:
        self.hosts = tuple(hosts)
        self.balancer = BALANCER if balancer else None
        self.name = f"mh{secrets.token_hex(3)}"
        names = [*self.hosts, *([BALANCER] if balancer else [])]
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, start=11)}
        self.directory = Path(tempfile.gettempdir(), f"{self.name}-fleet")
        self.inventory = self.directory / "inventory" / "hosts.yml"
        """For `ansible-playbook -i`; group_vars and host_vars go beside it."""
        self._served = self.directory / "served"
        self._machines: dict[str, Machine] = {}
        self._pen: Pen | None = None
        self._controller: Namespace | None = None
        self._controller_pen: Pen | None = None
        self._numbers = itertools.count()
        self._children: list[subprocess.Popen[bytes]] = []

    # -- life -------------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def start(self) -> None:
        """Boot all hosts and wait until they are up."""
        clean_up()
        image = images.base_image()
        self._note()
        self.directory.mkdir(mode=0o755)
        self._pen = Pen.make(self.name)
        self._controller_pen = self._pen.below("controller")
        self._controller = Namespace(self._controller_pen)
        self._lay_network(self._controller)
        self._write_keys()
        self._write_inventory()
        self._write_door()
        self._serve(image)
        key = (self.directory / "key.pub").read_text()
        for name, address in self.addresses.items():
            identity = Identity(
                name=name,
                address=address,
                host_key=self.directory / f"host-key-{name}",
                authorized_key=key,
                neighbours=self.addresses,
            )
            machine = Machine(
                identity,
                directory=self.directory / name,
                root=image.root,
                fleet=self.name,
                pen=self._pen.below(name),
                network=self._controller,
            )
            self._machines[name] = machine
            machine.switch_on()
        for name in self.addresses:
            self.wait_booted(name)

    def close(self) -> None:
        """Take everything away at once. Fails if something of it is left, and with what."""
        with _uninterrupted():
            if self._pen is not None:
                self._pen.remove()
            for machine in self._machines.values():
                machine.released()
            if self._controller is not None:
                self._controller.released()
            for child in self._children:
                child.wait()
            _remove_files(self.name, self.directory)
            left = left_overs(self.name, self.directory, self.network_inodes())
            for namespace in self._namespaces():
                namespace.close()
            assert not left, f"the fleet {self.name} has left behind: {left}"

    def network_inodes(self) -> set[int]:
        """Name the fleet's network namespaces as /proc does: until it is closed, when others get the numbers."""
        return {each.inode for each in self._namespaces()}

    def _namespaces(self) -> list[Namespace]:
        controller = [self._controller] if self._controller is not None else []
        return [*controller, *(machine.network for machine in self._machines.values())]

    # -- hosts ------------------------------------------------------------------------------------------------------
    def wait_booted(self, host: str, limit_s: float = BOOT_LIMIT_S) -> None:
        """Wait until systemd says that it has started everything; fail with what it could not start."""
        deadline = time.monotonic() + limit_s
        machine = self._machines[host]
        while True:
            assert machine.is_on, f"{host} has ended; its console says:\n{machine.last_words()}"
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{host} is not up after {limit_s} s; its console says:\n{machine.last_words()}"
            state = self._ssh(host, ["systemctl", "is-system-running", "--wait"], limit_s=left_s)
            if state.returncode != 255:  # which is ssh's own, and means that sshd does not answer yet
                break
            time.sleep(0.05)
        if state.stdout.strip() != "running":
            failed = self._ssh(host, ["systemctl", "--failed", "--no-legend", "--plain"]).stdout
            why = f"{failed or state.stderr}\n{machine.last_words()}\n{self.journal(host)}"
            raise AssertionError(f"{host} is {state.stdout.strip()}: {why}")

    def power_off(self, host: str) -> None:
        """Pull the plug of a host: no process of it says goodbye, and no packet of it comes any more."""
        self._machines[host].switch_off()

    def power_on(self, host: str, *, wait: bool = True) -> None:
        """Boot a host again, from its own disk as it was."""
        self._machines[host].switch_on()
        if wait:
            self.wait_booted(host)

    def is_on(self, host: str) -> bool:
        """Whether a host has power."""
        return self._machines[host].is_on

    def ssh(
        self, host: str, argv: Sequence[str | Path], *, limit_s: float = COMMAND_LIMIT_S, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host as root. Raises CommandFailed unless `check` is off."""
        return self._ssh(host, argv, limit_s=limit_s, check=check)

    def journal(self, host: str, unit: str | None = None) -> str:
        """Read a host's journal, with or without power."""
        argv = ["journalctl", "--no-pager", "--output=short-precise", *([f"--unit={unit}"] if unit else [])]
        if self.is_on(host):
            self._ssh(host, ["journalctl", "--sync"])  # what was sent to it may not have been read yet
            return self._ssh(host, argv).stdout
        directory = self._machines[host].disk / "var/log/journal"
        done = subprocess.run(
            [*argv, f"--directory={directory}"], capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False
        )
        return done.stdout

    def _ssh(
        self, host: str, argv: Sequence[str | Path], *, limit_s: float = COMMAND_LIMIT_S, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = ["ssh", "-F", self.directory / "ssh_config", f"root@{self.addresses[host]}"]
        return self.run_in_controller([*command, shlex.join(map(str, argv))], limit_s=limit_s, check=check)

    # -- controller -------------------------------------------------------------------------------------------------
    def run_in_controller(
        self,
        argv: Sequence[str | Path],
        *,
        limit_s: float = COMMAND_LIMIT_S,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
        directory: Path = CHECKOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where the hosts can be reached; give its output, stderr apart. Raises CommandFailed.

        `environment` is added to the caller's. The programs of the caller's Python come first in PATH.
        """
        assert self._controller_pen is not None, "not started"
        pen = self._controller_pen.below(f"command-{next(self._numbers)}")
        with subprocess.Popen(
            self.in_controller(argv, pen),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(environment),
            cwd=directory,
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=limit_s)
            except BaseException as error:
                pen.remove()  # and so all it has started, or its output might never end
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                output, errors = process.communicate()
                raise CommandFailed(f"not done in {limit_s:g} s: {said(argv)}\n{output}{errors}") from None
        pen.remove_if_empty()  # Ansible leaves shared SSH connections for its next run
        if check and process.returncode != 0:
            raise CommandFailed(f"{process.returncode} from {said(argv)}\n{output}{errors}")
        return subprocess.CompletedProcess(list(map(str, argv)), process.returncode, output, errors)

    def start_in_controller(self, argv: Sequence[str | Path], *, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command where the hosts can be reached; it is killed with the fleet at the latest.

        What it says goes into `log`.
        """
        with (log or Path(os.devnull)).open("wb") as output:
            child = subprocess.Popen(
                self.in_controller(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(None),
                cwd=CHECKOUT,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def in_controller(self, argv: Sequence[str | Path], pen: Pen | None = None) -> list[str]:
        """Give the command that does what `argv` does, where the hosts can be reached."""
        assert self._controller is not None and self._controller_pen is not None, "not started"
        return (pen or self._controller_pen).entered(self._controller.entered(argv))

    def serve(self, name: str, directory: Path) -> str:
        """Serve a directory to the hosts, and give its URI."""
        (self._served / name).symlink_to(directory)
        return f"http://{CONTROLLER_ADDRESS}/{name}/"

    @property
    def door(self) -> Path:
        """A script for people: `DOOR ansible-playbook ...` does in the controller what `run_in_controller` does."""
        return self.directory / "controller"

    def _write_door(self) -> None:
        settings = [f"{name}={value}" for name, value in self._settings().items()]
        self.door.write_text(f'#!/bin/sh\nexec {said(self.in_controller(["env", *settings]))} "$@"\n')
        self.door.chmod(0o700)

    def _settings(self) -> dict[str, str]:
        """Give the environment variables of what runs in the controller. The programs of this Python come first."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            # To be let in, on a busy machine. One without power has no route to it, which shows sooner.
            "ANSIBLE_TIMEOUT": "30",
        }

    def _environment(self, added: Mapping[str, str] | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return kept | self._settings() | dict(added or {})

    # -- making -----------------------------------------------------------------------------------------------------
    def _note(self) -> None:
        """Write down that this fleet is there, before anything of it is."""
        STATES.mkdir(mode=0o755, exist_ok=True)
        state = {
            "pid": os.getpid(),
            "start_time": start_time(os.getpid()),
            "directory": str(self.directory),
            "cgroups": [str(own / self.name) for own in own_cgroups()],
        }
        (STATES / self.name).write_text(json.dumps(state))

    def _lay_network(self, controller: Namespace) -> None:
        """Lay the bridge that all hosts are plugged into. The controller refuses to be a way to anywhere else."""
        controller.ip(
            "link set lo up",
            "link add fleet type bridge forward_delay 0",
            f"address add {CONTROLLER_ADDRESS}/24 dev fleet",
            "link set fleet up",
            "route add unreachable default",
        )
        # A router that says at once that there is no route: nobody waits for an answer that will not come.
        forward = "echo 1 >/proc/sys/net/ipv4/ip_forward"
        subprocess.run(controller.entered(["sh", "-c", forward]), timeout=COMMAND_LIMIT_S, check=True)

    def _write_keys(self) -> None:
        """Make the key that opens the hosts, and the hosts' own; write down which is whose."""
        for name in ["key", *(f"host-key-{host}" for host in self.addresses)]:
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", self.directory / name],
                timeout=COMMAND_LIMIT_S,
                check=True,
            )
        known = []
        for name, address in self.addresses.items():
            kind, key, _comment = (self.directory / f"host-key-{name}.pub").read_text().split()
            known.append(f"{address},{name} {kind} {key}\n")
        (self.directory / "known_hosts").write_text("".join(known))
        (self.directory / "ssh_config").write_text(
            f"""\
Host *
    IdentityFile {self.directory}/key
    IdentitiesOnly yes
    UserKnownHostsFile {self.directory}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 30
    ServerAliveInterval 5
    ServerAliveCountMax 3
    LogLevel ERROR
"""
        )

    def _write_inventory(self) -> None:
        """Write which hosts there are and how to reach them. (JSON is YAML.)"""
        zones = dict(zip(self.hosts, "abcdefghij", strict=False))
        groups: dict[str, Any] = {
            "modelhost": {
                "hosts": {
                    name: {"ansible_host": self.addresses[name], "modelhost_zone": zones[name]} for name in self.hosts
                }
            }
        }
        if self.balancer is not None:
            groups["haproxy"] = {"hosts": {self.balancer: {"ansible_host": self.addresses[self.balancer]}}}
        variables = {
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": f"-F {self.directory}/ssh_config",
            # Sockets of shared connections are found by address, which is the same in every fleet.
            "ansible_control_path_dir": f"{self.directory}/cp",
        }
        self.inventory.parent.mkdir()
        self.inventory.write_text(json.dumps({"all": {"vars": variables, "children": groups}}, indent=2) + "\n")

    def _serve(self, image: images.Image) -> None:
        """Serve the packages to the hosts, over HTTP as Debian's mirrors do."""
        self._served.mkdir()
        self.serve("packages", image.packages)
        command = [sys.executable, "-m", "http.server", "--bind", CONTROLLER_ADDRESS]
        command += ["--directory", str(self._served), "80"]
        self.start_in_controller(command, log=self.directory / "served.log")


def said(argv: Sequence[str | Path]) -> str:
    """A command as one would type it."""
    return shlex.join(map(str, argv))


# -- what is needed, and what is left -------------------------------------------------------------------------------
def missing() -> str | None:
    """Say why a fleet cannot run here, and what would help; None if it can."""
    if os.geteuid() != 0:
        return "a fleet needs root: it makes namespaces, mounts and cgroups"
    programs = {
        "systemd-nspawn": "systemd-container",
        "ip": "iproute2",
        "ssh": "openssh-client",
        "nsenter": "util-linux",
        "mmdebstrap": "mmdebstrap",
    }
    lacking = [package for program, package in programs.items() if shutil.which(program) is None]
    if lacking:
        return f"a fleet needs {', '.join(lacking)}; as root, once: apt-get install {' '.join(lacking)}"
    if not {"memory", "pids", "cpu"} <= {path.name for path in Path("/sys/fs/cgroup").glob("*/")}:
        return "a fleet needs the controllers of cgroup v1 under /sys/fs/cgroup"
    return images.missing()


def left_overs(name: str, directory: Path, network_inodes: set[int]) -> list[str]:
    """List what is left of a fleet on this machine."""
    left = [str(path) for path in (directory, STATES / name) if path.exists()]
    left += [str(own / name) for own in own_cgroups() if (own / name).exists()]
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/{name}" in line]
    nspawn = Path("/run/systemd/nspawn")
    left += [str(path) for path in nspawn.rglob(f"*{name}*")] if nspawn.is_dir() else []
    users = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino in network_inodes:
                users.append(int(process.name))
        except OSError:  # it has ended meanwhile, or is the machine's own process 1 and hides it
            pass
    return left + described(users)


def clean_up() -> None:
    """Take away what is left of fleets whose process was killed."""
    for path in STATES.glob("*") if STATES.is_dir() else []:
        try:
            state = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            continue
        if start_time(state["pid"]) == state["start_time"]:
            continue  # somebody's who runs
        Pen(tuple(map(Path, state["cgroups"]))).remove()
        _remove_files(path.name, Path(state["directory"]))


def _remove_files(name: str, directory: Path) -> None:
    """Remove a fleet's files, once none of its processes is left, and last of all the note that it was there."""
    # `rm` does not mind what vanishes meanwhile: another run may clean up the same.
    subprocess.run(["rm", "-rf", "--one-file-system", directory], timeout=REMOVE_LIMIT_S, check=True)
    nspawn = Path("/run/systemd/nspawn")
    for left in sorted(nspawn.rglob(f"*{name}*")) if nspawn.is_dir() else []:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    (STATES / name).unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C from stopping halfway what cleans up; it is heard afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            os.kill(os.getpid(), signal.SIGINT)
