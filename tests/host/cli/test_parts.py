"""The parts of commands: tails, listeners, children, preflight, the example, the watch over a start."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from host.cli.children import child_pids
from host.cli.example import INLINE_MAX_CHARS, curl_command, example_of
from host.cli.listeners import listening_inodes, listening_process
from host.cli.preflight import (
    RunLock,
    check_port,
    child_environment,
    clear_leftovers,
    holder_pid,
    prepare_run_dir,
)
from host.cli.running import StartWatch, local_address
from host.cli.status import duration
from host.config.deployment import DeployedModel
from host.config.run_dir import RunDirectory
from host.config.settings import resolve_settings
from host.protocol.errors import ConfigError, HostError
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec
from host.supervisor import ProcessInfo, ProcessState
from host.tail import Follower, all_lines, last_lines, recent_lines


# -- tails ------------------------------------------------------------------------------------------------
def test_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert last_lines(path, 3) == []
    path.write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)) + b"\xff open")
    assert last_lines(path, 2) == ["line 99999", "\ufffd open"]
    assert last_lines(path, 0) == []


def test_lines_from_before_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    assert recent_lines(path, 5) == list(all_lines(path)) == []
    for name, lines in (("x.log", "e\nf\n"), ("x.log.1", "c\nd\n"), ("x.log.2", "a\nb\n"), ("x.log.10", "no\n")):
        (tmp_path / name).write_text(lines)
    assert [recent_lines(path, count) for count in (0, 1, 2, 3)] == [[], ["f"], ["e", "f"], ["d", "e", "f"]]
    assert list(all_lines(path)) == ["a", "b", "c", "d", "e", "f"]


def test_a_follower_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("old\n")
    follower = Follower(path)
    assert follower.new_lines() == []
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert follower.new_lines() == ["one"]
        file.write("o\nlast of the old file\n")
    path.rename(tmp_path / "x.log.1")
    assert follower.new_lines() == ["two", "last of the old file"]
    path.write_text("new\n")
    assert follower.new_lines() == ["new"]
    follower.close()


# -- listeners --------------------------------------------------------------------------------------------
def test_the_listener_of_a_port_is_found() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert listening_process(port) is None
        sock.listen()
        found = listening_process(port)
    assert found is not None
    assert found.pid == os.getpid()
    command = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode()
    assert found.command == command.strip()[:100]


def test_a_recorded_tree(tmp_path: Path) -> None:
    line = "   0: 0100007F:1F90 00000000:0000 {} 00000000:00000000 00:00000000 00000000  0  0 {} 1 0 100 0\n"
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(
        "head\n" + line.format("0A", 77) + line.format("01", 78) + line.format("0A", 79)
    )
    assert listening_inodes(0x1F90, tmp_path) == {"77", "79"}
    assert listening_inodes(80, tmp_path) == set()
    (tmp_path / "12" / "fd").mkdir(parents=True)
    (tmp_path / "12" / "fd" / "3").symlink_to("socket:[79]")
    (tmp_path / "12" / "cmdline").write_bytes(b"nginx\0-g\0x\0")
    (tmp_path / "9").mkdir()
    found = listening_process(0x1F90, tmp_path)
    assert found is not None
    assert (found.pid, found.command) == (12, "nginx -g x")


def test_check_port(short: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        # Whoever shares the port with others is seen all the same.
        with socket.socket() as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind(("127.0.0.1", 0))
            shared.listen()
            with pytest.raises(HostError, match="address already in use"):
                check_port("127.0.0.1", shared.getsockname()[1], "--port")
    check_port("127.0.0.1", port, "--port")
    with pytest.raises(HostError, match=r"cannot listen on 203.0.113.1 port 80: cannot assign requested address"):
        check_port("203.0.113.1", 80, "--port")


def test_children_are_found_by_their_parent(tmp_path: Path) -> None:
    for pid, stat in ((5, "5 (a) b) S 1 5 5"), (6, "6 (x) S 5 6 6"), (7, "7 ((sd-pam)) S 5 7 7")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(stat)
    assert sorted(child_pids(5, tmp_path)) == [6, 7]


# -- preflight --------------------------------------------------------------------------------------------
def test_the_run_directory_is_its_owners_alone(short: Path) -> None:
    run_dir = RunDirectory(short / "a" / "run")
    (short / "a").mkdir()
    run_dir.root.mkdir(mode=0o777)
    prepare_run_dir(run_dir)
    prepare_run_dir(run_dir)
    assert [path.stat().st_mode & 0o777 for path in (run_dir.root, run_dir.sockets, run_dir.logs)] == [0o700] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a directory away")
def test_somebody_elses_run_directory_is_refused(short: Path) -> None:
    os.chown(short, 12345, 12345)
    with pytest.raises(ConfigError, match="expected a directory of ours"):
        prepare_run_dir(RunDirectory(short))
    os.chown(short, 0, 0)


def test_one_host_for_each_run_directory(short: Path) -> None:
    run_dir = RunDirectory(short)
    assert holder_pid(run_dir) is None
    with RunLock(run_dir):
        assert holder_pid(run_dir) == os.getpid()
        with pytest.raises(HostError, match=rf"a host already runs in {short} \(pid {os.getpid()}\)"), RunLock(run_dir):
            pass
    assert holder_pid(run_dir) is None
    with RunLock(run_dir):
        pass


def test_the_leftovers_of_a_killed_run_are_removed(short: Path) -> None:
    run_dir = RunDirectory(short)
    prepare_run_dir(run_dir)
    left = [
        run_dir.supervisor_socket,
        run_dir.control_socket,
        run_dir.worker_socket("a.v1", 0),
        short / ".control.sock.new",
    ]
    run_dir.group_sockets("a.v1").mkdir()
    for path in left:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    # Its pid may be anybody's by now.
    (short / "supervisord.pid").write_text(f"{os.getpid()}\n")
    kept = run_dir.log("up")
    kept.write_text("x")
    clear_leftovers(run_dir)
    assert [path for path in (*left, short / "supervisord.pid") if path.exists()] == []
    assert kept.exists()


def test_children_see_only_what_they_need() -> None:
    given = {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "/x", "OMP_NUM_THREADS": "9", "SECRET": "s", "HOME": "/h"}
    assert child_environment(given) == {"PATH": "/bin", "LC_ALL": "C", "HOME": "/h"}


# -- the watch over a start -------------------------------------------------------------------------------
def seen(state: ProcessState, pid: int, name: str = "0") -> ProcessInfo:
    return ProcessInfo(
        group="a.v1", name=name, state=state, pid=pid, start_s=0, stop_s=0, exit_status=0, spawn_error=""
    )


@pytest.mark.parametrize("state", [ProcessState.BACKOFF, ProcessState.FATAL, ProcessState.EXITED])
def test_a_state_of_failure_is_noticed(state: ProcessState) -> None:
    watch = StartWatch()
    assert watch.failed([seen(ProcessState.STOPPED, 0)]) == []
    assert watch.failed([seen(ProcessState.STARTING, 5), seen(ProcessState.STARTING, 6, "1")]) == []
    assert watch.failed([seen(ProcessState.STARTING, 5), seen(state, 0, "1")]) == ["a.v1:1"]


def test_a_new_pid_is_a_failure_even_if_it_runs() -> None:
    watch = StartWatch()
    assert watch.failed([seen(ProcessState.STARTING, 0)]) == []
    assert watch.failed([seen(ProcessState.RUNNING, 5)]) == []
    assert watch.failed([seen(ProcessState.RUNNING, 5)]) == []
    assert watch.failed([seen(ProcessState.RUNNING, 6)]) == ["a.v1:0"]


# -- what is shown ----------------------------------------------------------------------------------------
SIGNATURE = Signature(
    (TensorSpec("x", "FP64", (-1, 2)), TensorSpec("t", "BYTES", (-1,))), (TensorSpec("y", "FP64", (-1,)),)
)


def test_an_example_without_golden_cases_is_zeros(tmp_path: Path) -> None:
    assert example_of(SIGNATURE, tmp_path) == {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [0.0, 0.0]},
            {"name": "t", "shape": [1], "datatype": "BYTES", "data": [""]},
        ]
    }


@pytest.mark.parametrize("width", [1, INLINE_MAX_CHARS])
def test_the_curl_command_can_be_pasted(tmp_path: Path, width: int) -> None:
    model = DeployedModel(
        name="m",
        version="1",
        processes=1,
        package=str(tmp_path),
        platform="python",
        signature=Signature((TensorSpec("it's", "FP64", (-1, width)),), SIGNATURE.outputs),
        limits=Limits(),
    )
    settings, _ = resolve_settings({}, None, {}, {"address": "::"}, tmp_path)
    command = curl_command(settings, model, tmp_path / "example file.json")
    words = subprocess.run(
        ["/bin/sh", "-c", f"curl() {{ printf '%s\\n' \"$@\"; }}; {command}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[1] == "http://[::1]:8080/v2/models/m/infer"
    assert words[-1].startswith("@" if width > 1 else '{"inputs"')
    assert ("it's" in words[-1]) is (width == 1)


def test_durations() -> None:
    assert [duration(value) for value in (0, 59.9, 61, 3600, 90061)] == [
        "0:00",
        "0:59",
        "1:01",
        "1:00:00",
        "1d 01:01:01",
    ]


def test_local_addresses() -> None:
    addresses = ("0.0.0.0", "::", "10.0.0.1")  # noqa: S104
    assert [local_address(address) for address in addresses] == ["127.0.0.1", "::1", "10.0.0.1"]
