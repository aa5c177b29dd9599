"""The program that reloads HAProxy: what it keeps of servers, and what it says of a socket that answers otherwise."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from module_runs import load

haproxy_reload = load("haproxy_reload", "roles/haproxy/files")

HEADER = "1\n# be_id be_name srv_id srv_name srv_addr srv_port more\n"
CONFIG = "backend model_A\n  server h1 127.0.0.1:81 check\n"

Answers = Callable[[Callable[[socket.socket, str], None]], Path]


@pytest.fixture
def answers() -> Iterator[Answers]:
    """Give a way to answer commands on a socket, whose path it gives."""
    directory = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    listener = socket.socket(socket.AF_UNIX)
    threads = []

    def begin(answer: Callable[[socket.socket, str], None]) -> Path:
        listener.bind(str(directory / "s"))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        answer(connection, connection.makefile().readline().strip())
                    except OSError:  # it has heard enough
                        pass

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return directory / "s"

    yield begin
    listener.shutdown(socket.SHUT_RDWR)
    threads[0].join(10)
    listener.close()
    shutil.rmtree(directory)


def test_servers_that_are_configured_are_kept_with_their_ports_of_now() -> None:
    rows = "3 model_A 1 h1 127.0.0.1 80 0\n3 model_A 2 h2 127.0.0.1 80 0\n3 model_A\n\n"
    kept = haproxy_reload.with_ports(HEADER + rows, haproxy_reload.configured_ports(CONFIG))
    assert kept == f"{HEADER}3 model_A 1 h1 127.0.0.1 81 0\n"
    assert haproxy_reload.with_ports(HEADER, {}) == HEADER


@pytest.mark.parametrize("states", ["", "1\n", "Permission denied\n\n", "1\n# be_id what\n"])
def test_what_is_no_table_is_said_and_nothing_is_reloaded(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: str
) -> None:
    def answer(connection: socket.socket, command: str) -> None:
        connection.sendall((states if command == "show servers state" else "Name: HAProxy\nPid: 7\n").encode())

    path = answers(answer)
    (tmp_path / "haproxy.cfg").write_text(CONFIG)
    monkeypatch.setattr("os.kill", lambda *_: pytest.fail("nothing is to be told to HAProxy"))
    said = haproxy_reload.main(1, tmp_path / "haproxy.cfg", path, tmp_path / "state")
    assert said == f"{path}: show servers state: expected a table, received {states.strip()!r}"
    assert list((tmp_path / "state").iterdir()) == []


STATES = """1
# be_id be_name srv_id srv_name srv_addr srv_port srv_op_state srv_admin_state srv_uweight
3 model_A 1 h1 127.0.0.1 81 2 0 1
3 model_A 2 h2 127.0.0.1 82 2 0 1
3 model_A 3 h3 127.0.0.1 83 2 8 1
4 model_B 1 h1 127.0.0.1 81 0 0 1
4 model_B 2 h2 127.0.0.1 82 2 0 1
5 model_C 1 h2 127.0.0.1 82 2 0 1

"""


@pytest.mark.parametrize("comes_up", [True, False])
def test_the_old_worker_asks_no_server_that_is_not_configured_any_more(
    answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, comes_up: bool
) -> None:
    """As long as another one can take its requests, and it was not drained. If no new worker comes, it goes on."""
    heard: list[str] = []
    pids = ["7"]

    def answer(connection: socket.socket, command: str) -> None:
        if command.startswith("set "):
            heard.append(command)
        texts = {"show servers state": STATES, "show info": f"Pid: {pids[-1]}\n"}
        connection.sendall(texts.get(command, "\n").encode())

    def kill(*_: int) -> None:
        heard.append("reload")
        if comes_up:
            pids.append("8")

    path = answers(answer)
    (tmp_path / "haproxy.cfg").write_text(CONFIG + "backend model_B\n  server h1 127.0.0.1:81 check\n")
    monkeypatch.setattr("os.kill", kill)
    monkeypatch.setattr(haproxy_reload, "LIMIT_S", 10.0 if comes_up else 0.1)
    said = haproxy_reload.main(1, tmp_path / "haproxy.cfg", path, tmp_path / "state")
    assert said == "" if comes_up else "no new worker" in said
    drained = ["set server model_A/h2 state drain", "reload"]
    assert heard == (drained if comes_up else [*drained, "set server model_A/h2 state ready"])
    # The new worker's states are those from before.
    assert " h1 127.0.0.1 81 2 0 1\n" in (tmp_path / "state" / "server-state").read_text()


def test_an_answer_has_an_end(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(connection: socket.socket, command: str) -> None:
        while True:
            connection.sendall(b"x" * (10 if command == "slow" else 1 << 16))
            time.sleep(0.01)

    path = answers(answer)
    monkeypatch.setattr(haproxy_reload, "CALL_S", 0.2)
    with pytest.raises(TimeoutError):
        haproxy_reload.call(path, "slow")
    monkeypatch.setattr(haproxy_reload, "CALL_S", 10.0)
    monkeypatch.setattr(haproxy_reload, "ANSWER_MAX_BYTES", 1 << 17)
    with pytest.raises(OSError, match="expected an answer of at most 131072 bytes"):
        haproxy_reload.call(path, "much")
