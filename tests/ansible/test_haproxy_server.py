"""`haproxy_server`: what it reads and decides, and what it says to a socket that answers like HAProxy's."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from module_runs import load, run_module

module = load("haproxy_server")
HaproxyError = module.HaproxyError

STATES_HEADER = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port"
)


class FakeHaproxy:
    """Servers of backends, and a socket that is asked about them; `refuses` answers commands that begin so."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "s")
        self.servers: dict[str, dict[str, int]] = {}
        self.said: list[str] = []
        self.refuses: dict[str, str] = {}
        self.on_look: Callable[[], None] = lambda: None
        self.on_statistics: Callable[[], None] = lambda: None
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def add(self, name: str, *, op: int = 2, admin: int = 0, weight: int = 1, sessions: int = 0) -> None:
        """Add `BACKEND/SERVER`."""
        self.servers[name] = {"op": op, "admin": admin, "weight": weight, "sessions": sessions}

    def close(self) -> None:
        """End the thread."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                command = connection.makefile().readline().strip()
                connection.sendall(self._answer(command).encode())

    def _answer(self, command: str) -> str:
        for beginning, answer in self.refuses.items():
            if command.startswith(beginning):
                return answer
        if command == "show servers state":
            self.on_look()
            lines = ["1", STATES_HEADER]
            for name, it in self.servers.items():
                backend, server = name.split("/")
                states = f"{it['op']} {it['admin']} {it['weight']} 1"
                lines.append(f"3 {backend} 1 {server} 127.0.0.1 {states} 2 8 2 0 6 0 0 0 - 80 - 0 0 - - 0")
            return "\n".join([*lines, "", ""])
        if command == "show stat":
            self.on_statistics()
            rows = ["# pxname,svname,qcur,qmax,scur,smax,"]
            rows += [f"{name.replace('/', ',')},0,0,{it['sessions']},9," for name, it in self.servers.items()]
            return "\n".join([*rows, "model_A,BACKEND,0,0,3,9,", "", ""])
        self.said.append(command)
        words = command.split()
        it = self.servers[words[2]]
        if words[3] == "state":
            it["admin"] = {"ready": 0, "drain": 8, "maint": 1}[words[4]]
        else:
            it["weight"] = int(words[4])
        return "\n"


@pytest.fixture
def haproxy() -> Iterator[FakeHaproxy]:
    """Give one with a model on two hosts, and something else on the first."""
    directory = Path(tempfile.mkdtemp(prefix="mh-", dir="/tmp"))
    fake = FakeHaproxy(directory)
    fake.add("model_A/h1", weight=2)
    fake.add("model_A/h2", weight=2)
    fake.add("modelhost_hosts/h1")
    yield fake
    fake.close()
    shutil.rmtree(directory)


def run(haproxy: FakeHaproxy, **options: Any) -> dict[str, Any]:
    return run_module(module, **{"socket": haproxy.path, "timeout_s": 60, **options})


# -- tables ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("admin", "op", "expected"),
    [
        (0, 2, ("ready", True, False)),
        (0, 0, ("ready", False, True)),
        (0, 1, ("ready", False, False)),  # starting
        (0, 3, ("ready", False, False)),  # says that it stops
        (0x08, 2, ("drain", True, False)),
        (0x10, 2, ("drain", True, False)),  # as the server that it follows
        (0x08, 0, ("drain", False, True)),
        (0x01, 0, ("maint", False, False)),
        (0x04, 2, ("maint", False, False)),
        (0x20, 2, ("maint", False, False)),
        (0x09, 2, ("maint", False, False)),
    ],
)
def test_states(admin: int, op: int, expected: tuple[str, bool, bool]) -> None:
    states = f"1\n# be_id be_name srv_id srv_name srv_op_state srv_admin_state srv_uweight\n3 b 1 s {op} {admin} 4\n\n"
    [server] = module.servers_of(states, "# pxname,svname,qcur,scur,\nb,s,1,2,\n")
    assert (server.state, server.up, server.down) == expected
    assert (server.name, server.weight, server.sessions) == ("b/s", 4, 3)


def test_other_columns_and_an_empty_table_are_no_trouble() -> None:
    states = "1\n# be_id new be_name srv_name srv_op_state srv_admin_state srv_uweight more\n3 - b s 2 0 1\n"
    assert [one.name for one in module.servers_of(states, "# pxname,svname,scur,qcur,-,\nb,s,,,\n")] == ["b/s"]
    assert module.servers_of("1\n# be_id be_name\n\n", "# pxname,svname,\n") == []


@pytest.mark.parametrize(
    ("states", "stats", "expected"),
    [
        ("Permission denied\n", "# pxname\n", "show servers state: expected a table, received 'Permission denied'"),
        ("", "# pxname\n", "show servers state: expected a table, received ''"),
        ("1\n# what\n", "# pxname\n", "show servers state: expected 'be_id' as the first column, received 'what'"),
        ("1\n# be_id\n", "# svname,a\n", "show stat: expected 'pxname' as the first column, received 'svname'"),
        (
            "1\n# be_id be_name srv_name srv_op_state\n3 b s x\n",
            "# pxname\n",
            "show servers state: b/s: srv_op_state: expected a whole number, received 'x'",
        ),
        (
            "1\n# be_id\n",
            "# pxname,svname,scur\nb,s,many\n",
            "show stat: b/s: scur: expected a whole number, received 'many'",
        ),
    ],
)
def test_what_is_no_table_is_refused(states: str, stats: str, expected: str) -> None:
    with pytest.raises(HaproxyError, match=re.escape(expected)):
        module.servers_of(states, stats)


# -- changes ------------------------------------------------------------------------------
def test_all_backends_of_a_server_are_drained(haproxy: FakeHaproxy) -> None:
    result = run(haproxy, server="h1", state="drain")
    assert haproxy.said == ["set server model_A/h1 state drain", "set server modelhost_hosts/h1 state drain"]
    assert (result["failed"], result["changed"], result["kept"]) == (False, True, [])
    assert [(one["backend"], one["state"]) for one in result["servers"]] == [
        ("model_A", "drain"),
        ("modelhost_hosts", "drain"),
    ]
    assert result["diff"]["before"] == "model_A/h1 state ready weight 2\nmodelhost_hosts/h1 state ready weight 1\n"
    assert result["diff"]["after"] == "model_A/h1 state drain weight 2\nmodelhost_hosts/h1 state drain weight 1\n"
    haproxy.said.clear()
    assert run(haproxy, server="h1", state="drain")["changed"] is False
    assert haproxy.said == []


def test_one_backend_of_a_server(haproxy: FakeHaproxy) -> None:
    run(haproxy, backend="model_A", server="h1", state="maint", weight=7)
    assert haproxy.said == ["set server model_A/h1 state maint", "set server model_A/h1 weight 7"]


def test_check_mode_says_what_it_would_do(haproxy: FakeHaproxy) -> None:
    asked = {"server": "h1", "state": "drain", "wait_until": "idle"}
    haproxy.servers["model_A/h1"]["sessions"] = 3
    checked = run(haproxy, check_mode=True, **asked)
    assert haproxy.said == []
    haproxy.on_look = lambda: haproxy.servers["model_A/h1"].update(sessions=0)
    done = run(haproxy, **asked)
    assert (checked["changed"], checked["diff"]) == (done["changed"], done["diff"])
    assert run(haproxy, check_mode=True, **asked)["changed"] is False


def test_many_weights_at_once(haproxy: FakeHaproxy) -> None:
    result = run(haproxy, weights={"model_A": {"h1": 4, "h2": "2"}})
    assert haproxy.said == ["set server model_A/h1 weight 4"]
    assert result["changed"]


@pytest.mark.parametrize("weight", [0, 1, 256])
def test_weights(haproxy: FakeHaproxy, weight: int) -> None:
    run(haproxy, backend="model_A", server="h1", weight=weight)
    assert haproxy.servers["model_A/h1"]["weight"] == weight


@pytest.mark.parametrize("weight", [-1, 257, True, "many", "\u0663", 1.5])
def test_weights_that_are_none(haproxy: FakeHaproxy, weight: object) -> None:
    result = run(haproxy, weights={"model_A": {"h1": weight}})
    expected = f"weights: model_A: h1: expected a whole number from 0 to 256, received {weight!r}"
    assert (result["failed"], result["msg"]) == (True, expected)
    assert haproxy.said == []


def test_unknown_servers_are_named(haproxy: FakeHaproxy) -> None:
    known = "model_A/h1, model_A/h2, modelhost_hosts/h1"
    result = run(haproxy, server="h9", state="drain")
    assert result["msg"] == f"any backend/h9: no such server; there are: {known}"
    result = run(haproxy, weights={"model_A": {"h1": 4, "h9": 1}})
    assert result["msg"] == f"weights: no such server: model_A/h9; there are: {known}"
    result = run(haproxy, weights={"model_A": 4})
    assert result["msg"] == "weights: model_A: expected server to weight, received 4"
    assert haproxy.said == []


def test_what_is_not_there_may_be_missing(haproxy: FakeHaproxy, tmp_path: Path) -> None:
    result = run(haproxy, server="h9", state="drain", missing_ok=True)
    assert (result["failed"], result["changed"], result["servers"]) == (False, False, [])
    assert result["missing"].startswith("any backend/h9: no such server")
    result = run(haproxy, server="h1", state="drain", missing_ok=True, socket=str(tmp_path / "none"))
    assert "no such socket" in result["missing"]
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    result = run(haproxy, server="h1", state="drain", missing_ok=True, socket=str(tmp_path / "dead"))
    assert (result["failed"], result["changed"]) == (False, False)
    assert "nobody listens" in result["missing"]
    result = run(haproxy, weights={"model_A": {"h1": 4, "h9": 1}}, missing_ok=True)
    assert (result["failed"], result["changed"]) == (False, False)
    assert result["missing"].startswith("weights: no such server: model_A/h9; there are: model_A/h1")
    assert haproxy.said == []


def test_several_backends_are_meant(haproxy: FakeHaproxy) -> None:
    result = run(haproxy, backends=["model_A", "modelhost_hosts"], server="h1", state="drain")
    assert haproxy.said == ["set server model_A/h1 state drain", "set server modelhost_hosts/h1 state drain"]
    assert result["missing"] == ""


def test_the_last_one_is_kept(haproxy: FakeHaproxy) -> None:
    result = run(haproxy, server="h1", state="drain", keep_last=True)
    assert result["kept"] == ["modelhost_hosts/h1"]
    assert haproxy.said == ["set server model_A/h1 state drain"]


@pytest.mark.parametrize("other", [{"op": 0}, {"admin": 8}, {"admin": 1}, {"weight": 0}])
def test_one_that_gets_no_requests_is_no_other(haproxy: FakeHaproxy, other: dict[str, int]) -> None:
    haproxy.servers["model_A/h2"].update(other)
    assert run(haproxy, backend="model_A", server="h1", state="drain", keep_last=True)["kept"] == ["model_A/h1"]


# -- waiting ------------------------------------------------------------------------------
def test_it_waits_until_requests_are_answered(haproxy: FakeHaproxy) -> None:
    it = haproxy.servers["model_A/h1"]
    it["sessions"] = 3

    def one_less() -> None:
        if haproxy.said:
            it["sessions"] = max(0, it["sessions"] - 1)

    haproxy.on_look = one_less
    result = run(haproxy, backend="model_A", server="h1", state="drain", wait_until="idle")
    assert [one["sessions"] for one in result["servers"]] == [0]
    assert result["waited_s"] > 0


def test_a_server_that_is_down_is_idle(haproxy: FakeHaproxy) -> None:
    haproxy.servers["model_A/h1"].update(op=0, sessions=3)
    result = run(haproxy, backend="model_A", server="h1", state="drain", wait_until="idle")
    assert (result["failed"], result["changed"]) == (False, True)


def test_waiting_has_an_end(haproxy: FakeHaproxy, monkeypatch: pytest.MonkeyPatch) -> None:
    # The clock goes on when HAProxy has answered whole: each of its answers has seconds of real time left.
    now_s = 0.0

    def go_on() -> None:
        nonlocal now_s
        now_s += 12.0

    haproxy.on_statistics = go_on
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s, sleep=time.sleep))
    haproxy.servers["model_A/h1"]["sessions"] = 3
    result = run(haproxy, backend="model_A", server="h1", state="drain", wait_until="idle", timeout_s=30)
    assert result["msg"] == "not within 30 s: idle: model_A/h1 has 3 requests"
    assert now_s == 36.0
    haproxy.servers["model_A/h1"].update(op=0)
    result = run(haproxy, backend="model_A", server="h1", state="ready", wait_until="up", timeout_s=30)
    assert result["msg"] == "not within 30 s: up: model_A/h1 is down"
    assert now_s == 72.0


# -- HAProxy is not as it should be ------------------------------------------------------------------------------
def test_what_haproxy_refuses(haproxy: FakeHaproxy) -> None:
    haproxy.refuses["set server"] = "Permission denied\n\n"
    result = run(haproxy, server="h2", state="drain")
    assert result["msg"] == "set server model_A/h2 state drain: Permission denied"


def test_what_haproxy_does_not_do(haproxy: FakeHaproxy) -> None:
    haproxy.refuses["set server"] = "\n"
    result = run(haproxy, server="h2", state="drain")
    assert result["msg"] == "HAProxy has not done what it was told: set server model_A/h2 state drain"


def test_a_server_that_goes_away_meanwhile(haproxy: FakeHaproxy) -> None:
    haproxy.on_look = lambda: haproxy.said and haproxy.servers.pop("model_A/h2", None)  # type: ignore[func-returns-value]
    result = run(haproxy, server="h2", state="drain")
    assert result["msg"] == "no longer there: model_A/h2"


def test_no_haproxy(tmp_path: Path) -> None:
    path = tmp_path / "s"
    result = run_module(module, socket=str(path), server="h1", state="drain")
    assert result["msg"] == f"{path}: no such socket: HAProxy does not run, or has another one"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    result = run_module(module, socket=str(path), server="h1", state="drain")
    assert result["msg"] == f"{path}: nobody listens: HAProxy does not run"


def test_a_haproxy_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as quiet:
        quiet.bind(str(tmp_path / "s"))
        quiet.listen()
        result = run_module(module, socket=str(tmp_path / "s"), server="h1", state="drain", timeout_s=0.2)
    assert result["msg"] == f"{tmp_path / 's'}: HAProxy does not answer 'show servers state' in time"


@pytest.mark.parametrize(
    "options",
    [
        {"weights": {}, "server": "h1"},
        {"weights": {}, "backend": "b"},
        {"weights": {}, "state": "ready"},
        {"weight": 3},
        {"state": "gone"},
    ],
)
def test_arguments_that_do_not_fit(haproxy: FakeHaproxy, options: dict[str, Any]) -> None:
    assert run(haproxy, **options)["failed"]
    assert haproxy.said == []
