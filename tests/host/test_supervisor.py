"""The client against a real supervisord, and against peers that are none."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisords import supervisord

from host.protocol.errors import HostError
from host.supervisor import (
    FAULT_NOT_RUNNING,
    AsyncSupervisorClient,
    ProcessInfo,
    ProcessState,
    SupervisorClient,
    SupervisorFault,
    SupervisorUnreachable,
    answer_value,
    process_info,
    request_bytes,
)

PROGRAMS = """\
[program:sleeper]
command=sleep 600
numprocs=2
process_name=%(process_num)d
startsecs=0
[program:single]
command=sleep 600
autostart=false
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mh-", dir="/tmp") as path:
        yield Path(path)


def running(processes: list[ProcessInfo]) -> bool:
    return all(process.state is ProcessState.RUNNING for process in processes if process.group == "sleeper")


@pytest.mark.integration
async def test_both_clients_see_and_stop_processes() -> None:
    with supervisord(PROGRAMS) as started:
        await see_and_stop(SupervisorClient(started.socket), AsyncSupervisorClient(started.socket))


async def see_and_stop(client: SupervisorClient, aclient: AsyncSupervisorClient) -> None:
    async with asyncio.timeout(10):
        while not running(processes := await aclient.processes()):
            pass
    assert {process.program: process.state for process in processes} == {
        "sleeper:0": ProcessState.RUNNING,
        "sleeper:1": ProcessState.RUNNING,
        "single": ProcessState.STOPPED,
    }
    assert [process.pid for process in await asyncio.to_thread(client.processes)] == [one.pid for one in processes]
    assert client.pid() > 0
    # One does not run and one does not exist: neither keeps the others from being stopped.
    await aclient.stop_all(["single", "nobody", "sleeper:0"])
    async with asyncio.timeout(10):
        while {process.program: process for process in await aclient.processes()}["sleeper:0"].state.alive:
            pass
    with pytest.raises(SupervisorFault, match="NOT_RUNNING: single") as fault:
        await aclient.call("stopProcess", "single")
    assert fault.value.code == FAULT_NOT_RUNNING
    with pytest.raises(SupervisorFault, match="UNKNOWN_METHOD"):
        client.call("noSuchMethod")


async def test_nobody_there_is_a_host_error(directory: Path) -> None:
    path = directory / "supervisor.sock"
    for _ in range(2):
        with pytest.raises(SupervisorUnreachable, match=f"does not answer on {path}"):
            SupervisorClient(path, 60.0).call("getState")
        with pytest.raises(HostError, match=f"does not answer on {path}"):
            await AsyncSupervisorClient(path, 60.0).call("getState")
        # The second time: a socket that nobody listens on any more.
        if not path.exists():
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))


async def test_silence_ends_with_the_deadline(directory: Path) -> None:
    path = directory / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        with pytest.raises(SupervisorUnreachable, match="no answer in time"):
            SupervisorClient(path, timeout_s=0.05).call("getState")
        with pytest.raises(SupervisorUnreachable, match="no answer in time"):
            await AsyncSupervisorClient(path, timeout_s=0.05).call("getState")


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 500 No\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n<half", b"\x00\r\n\r\n"],
)
async def test_an_answer_that_is_none_is_named(directory: Path, answer: bytes) -> None:
    path = directory / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)

        def answer_twice() -> None:
            for _ in range(2):
                peer, _ = listener.accept()
                with peer:
                    peer.recv(65536)
                    peer.sendall(answer)

        thread = threading.Thread(target=answer_twice)
        thread.start()
        with pytest.raises(SupervisorUnreachable, match="getState"):
            SupervisorClient(path, 60.0).call("getState")
        with pytest.raises(SupervisorUnreachable, match="getState"):
            await AsyncSupervisorClient(path, 60.0).call("getState")
        thread.join(10)


def test_calls_and_answers_are_xml_rpc() -> None:
    head, _, body = request_bytes("stopProcess", ["a<b:0", False]).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /RPC2 HTTP/1.0\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"supervisor.stopProcess" in body
    assert b"a&lt;b:0" in body
    xml = b"<methodResponse><params><param><value><int>7</int></value></param></params></methodResponse>"
    assert answer_value(b"HTTP/1.0 200 OK\r\n\r\n" + xml, "x") == 7


def test_every_state_is_known() -> None:
    from supervisor.states import ProcessStates

    assert {state.name: state.value for state in ProcessState} == {
        name: value for name, value in vars(ProcessStates).items() if name.isupper()
    }


def test_a_group_of_one_process_is_called_by_one_name() -> None:
    fields = {"state": 20, "pid": 1, "start": 1, "stop": 0, "exitstatus": 0, "spawnerr": ""}
    assert process_info({"group": "control", "name": "control"} | fields).program == "control"
    assert process_info({"group": "a.v1", "name": "0"} | fields).program == "a.v1:0"
