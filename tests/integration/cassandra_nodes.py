"""Real Cassandra nodes for tests: fetched once for a checkout, in a directory and at an address of their own.

    with CassandraNodes(1) as nodes:
        nodes.start()
        ... nodes.contact_points, nodes.port ...

Java 17 and Maven are needed (Debian: openjdk-17-jre-headless, maven); `missing` says what is not there. One node takes
some 5 s and 0.85 GB, three take a minute and 0.65 GB each.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self
from xml.etree import ElementTree

from hosts import CHECKOUT, PATIENCE, STOP_LIMIT_S, until

POM: Final = Path(__file__).parent / "cassandra" / "pom.xml"
REQUIRED: Final = "CI_REQUIRE_CASSANDRA"
"""With this in the environment the tests fail where Cassandra cannot run; otherwise they are skipped."""

FETCH_LIMIT_S: Final = 300.0 * PATIENCE
START_LIMIT_S: Final = 90.0
"""Of one node that is alone."""
JOIN_LIMIT_S: Final = 120.0
"""Of a node that joins others: gossip settles first."""

JAVA: Final = "17"
"""The version that Cassandra 5.0 and the flags below are for."""

_EXPORTS: Final = (
    "java.base/java.lang.ref",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
)
_OPENS: Final = (
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
)

_LOGBACK: Final = """\
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{HH:mm:ss.SSS} %logger{0}: %msg%n</pattern></encoder>
  </appender>
  <root level="INFO"><appender-ref ref="OUT"/></root>
</configuration>
"""


# -- what is needed -------------------------------------------------------------------------------------------------
def version() -> str:
    """Cassandra's version, as the pom says."""
    text = ElementTree.parse(POM).findtext("{*}version")  # noqa: S314 - our own file
    assert text is not None
    return text


def library() -> Path:
    """Where the jars are, or will be."""
    return CHECKOUT / ".venv" / f"cassandra-{version()}"


@functools.cache
def java() -> str | None:
    """The `java` of the version that is needed, whichever is this machine's default."""
    homes = sorted(Path("/usr/lib/jvm").glob(f"java-{JAVA}-*/bin/java"))
    for path in [*(str(home) for home in homes), shutil.which("java")]:
        if path is None:
            continue
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=False)
        if re.search(rf'version "{JAVA}[."]', done.stderr):
            return path
    return None


def missing() -> str | None:
    """Why Cassandra cannot run here, and what would help; None if it can."""
    packages = []
    if java() is None:
        packages.append(f"openjdk-{JAVA}-jre-headless")
    if not library().is_dir() and shutil.which("mvn") is None:
        packages.append("maven")
    if not packages:
        return None
    return f"Cassandra needs Java {JAVA} and Maven; as root, once: apt-get install {' '.join(packages)}"


def fetch() -> Path:
    """Fetch the jars unless they are there (66 MB); of several processes one does it. Fails with what Maven said."""
    directory = library()
    if directory.is_dir():
        return directory
    with (directory.parent / f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():
            return directory
        part = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        try:
            command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
            command += [f"-DoutputDirectory={part / 'lib'}", "-DincludeScope=runtime"]
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=FETCH_LIMIT_S,
                check=False,
            )
            assert done.returncode == 0, f"Maven could not fetch Cassandra {version()}:\n{done.stdout[-4000:]}"
            (part / "lib").rename(directory)
        finally:
            shutil.rmtree(part)
    return directory


def keytool(*arguments: str) -> None:
    """Run Java's tool for keys and certificates."""
    tool = Path(java() or "java").resolve().parent / "keytool"
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60 * PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- nodes ----------------------------------------------------------------------------------------------------------
class CassandraNode:
    """One process. The thread that calls `spawn` must outlive it: the kernel kills a node whose parent thread ends."""

    def __init__(
        self, directory: Path, address: str, port: int, storage_port: int, *, seed: str, memory: str, settings: str
    ) -> None:
        self.address = address
        self.port = port
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "node.log"
        self._conf = directory / "conf"
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._conf.mkdir(parents=True)
        self.data.mkdir()
        (self._conf / "logback.xml").write_text(_LOGBACK)
        # As clusters have it: a node that has a row reads its own.
        (self._conf / "cassandra-rackdc.properties").write_text("dc=datacenter1\nrack=rack1\n")
        (self._conf / "cassandra.yaml").write_text(
            f"""\
cluster_name: tests
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
commitlog_sync: batch
data_file_directories: [{self.data}/data]
commitlog_directory: {self.data}/commitlog
hints_directory: {self.data}/hints
saved_caches_directory: {self.data}/saved_caches
cdc_raw_directory: {self.data}/cdc_raw
listen_address: {address}
rpc_address: {address}
native_transport_port: {port}
storage_port: {storage_port}
start_native_transport: true
endpoint_snitch: GossipingPropertyFileSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "{seed}:{storage_port}"}}]
{settings}"""
        )

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        assert self._process is not None, "not started"
        return self._process.pid

    def spawn(self, *, settles: bool) -> None:
        """Start the process and do not wait for it. `settles`: wait for gossip, as a node with neighbours must."""
        assert self._process is None, "started already"
        command = ["setpriv", "--pdeathsig", "KILL", java() or "java"]
        for flag, packages in (("--add-exports", _EXPORTS), ("--add-opens", _OPENS)):
            command += [f"{flag}={package}=ALL-UNNAMED" for package in packages]
        command += [f"-Xms{self._memory}", f"-Xmx{self._memory}", "-Xss512k", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
        properties = {
            "jdk.attach.allowAttachSelf": "true",
            "cassandra.config": f"file://{self._conf}/cassandra.yaml",
            "logback.configurationFile": f"file://{self._conf}/logback.xml",
            "cassandra-foreground": "yes",
            "cassandra.storagedir": self.data,
            "cassandra.superuser_setup_delay_ms": "0",
            "java.io.tmpdir": self.data,
        }
        if settles:
            # 30 s otherwise, in which a node that joins hears of the others; here they are few and near.
            properties["cassandra.ring_delay_ms"] = "5000"
        else:
            properties |= {"cassandra.ring_delay_ms": "100", "cassandra.skip_wait_for_gossip_to_settle": "0"}
        command += [f"-D{name}={value}" for name, value in properties.items()]
        command += ["-cp", f"{self._conf}:{fetch()}/*", "org.apache.cassandra.service.CassandraDaemon"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )

    def wait_until_ready(self, limit_s: float) -> None:
        """Wait until clients can connect; fail with the log if they cannot."""
        process = self._process
        assert process is not None, "not started"

        def ready() -> bool:
            assert process.poll() is None, f"Cassandra ended with {process.returncode}:\n{self.tail()}"
            with socket.socket() as probe:
                return probe.connect_ex((self.address, self.port)) == 0

        try:
            until(ready, f"Cassandra listens on {self.address}:{self.port}", limit_s)
        except AssertionError:
            sys.stderr.write(self.tail())
            raise

    def tail(self) -> str:
        """The end of what it has logged."""
        return self.log.read_text(errors="replace")[-6000:]

    def freeze(self) -> None:
        """SIGSTOP, and wait until every thread has stopped: connections stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        threads = Path(f"/proc/{self.pid}/task")
        until(lambda: all(_is_stopped(path) for path in threads.glob("*/stat")), "the node is frozen")

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for its end; what was written is there when it starts again."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, frozen or not, and wait for its end; SIGKILL if it takes too long."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(STOP_LIMIT_S)
        self._process = None


class CassandraNodes:
    """One node, or a ring of several that have every row if the keyspace says so.

    Their addresses are 127.x.y.1 and following, x and y by chance: runs beside one another do not meet.
    """

    def __init__(self, count: int = 1, *, settings: str = "") -> None:
        """`settings`: more lines for cassandra.yaml."""
        self.directory = Path(tempfile.mkdtemp(prefix="mh-cassandra-", dir="/tmp"))
        net = f"127.{random.randint(1, 254)}.{random.randint(1, 254)}"  # noqa: S311
        addresses = [f"{net}.{number + 1}" for number in range(count)]
        self.port, storage_port = _free_ports(addresses, 2)
        self.nodes = tuple(
            CassandraNode(
                self.directory / str(number),
                address,
                self.port,
                storage_port,
                seed=addresses[0],
                memory="512m" if count == 1 else "256m",
                settings=settings,
            )
            for number, address in enumerate(addresses)
        )

    @property
    def contact_points(self) -> tuple[str, ...]:
        """Every node's address."""
        return tuple(node.address for node in self.nodes)

    def start(self) -> None:
        """Start every node, one after the other: two cannot join at once."""
        for node in self.nodes:
            self.start_node(node)

    def start_node(self, node: CassandraNode) -> None:
        """Start one, for the first time or again, and wait until it is ready."""
        self.spawn(node)
        self.wait_until_ready(node)

    def spawn(self, node: CassandraNode) -> None:
        """Start one and do not wait for it."""
        node.spawn(settles=len(self.nodes) > 1)

    def wait_until_ready(self, node: CassandraNode) -> None:
        """Wait until one that was started is ready; may be called by any thread."""
        node.wait_until_ready(START_LIMIT_S if len(self.nodes) == 1 else JOIN_LIMIT_S)

    def stop(self) -> None:
        """Kill all, for nothing of theirs is kept, and remove what they wrote."""
        try:
            for node in self.nodes:
                node.kill()
        finally:
            shutil.rmtree(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _is_stopped(path: Path) -> bool:
    """Whether a thread is, by its `stat` in /proc: the state stands behind the name in parentheses."""
    try:
        return path.read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _free_ports(addresses: Iterable[str], count: int) -> list[int]:
    """Ports that are free at all of the addresses."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(20_000, 32_000)  # noqa: S311 - below those that the kernel gives to clients
        for address in addresses:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if probe.connect_ex((address, port)) == 0 or not _can_bind(probe, address, port):
                    break
        else:
            if port not in found:
                found.append(port)
    return found


def _can_bind(probe: socket.socket, address: str, port: int) -> bool:
    try:
        probe.bind((address, port))
    except OSError:
        return False
    return True
