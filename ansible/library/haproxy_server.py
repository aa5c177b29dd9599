#!/usr/bin/python
"""Ansible module: servers of a running HAProxy, through its runtime socket; with the standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_server
short_description: States and weights of servers of a running HAProxy
description:
  - Changes servers of a running HAProxy through its runtime socket, and waits for what follows from it.
  - What it changes lasts until HAProxy starts again; the configuration is not touched.
options:
  socket:
    description: The runtime socket, of level admin.
    type: path
    default: /run/haproxy/admin.sock
  backend:
    description: Backend of the server; left out, every backend that has the server.
    type: str
  backends:
    description: Several backends, instead of I(backend).
    type: list
    elements: str
  missing_ok:
    description: >-
      Whether it is right that HAProxy does not run (no socket, or nobody listens there), or lacks a server that is
      named. Nothing is done then.
    type: bool
    default: false
  server:
    description: Name of the server; left out, every server of the backend, or of all.
    type: str
  state:
    description: >-
      C(ready) gets requests if its checks succeed, C(drain) gets no new ones, C(maint) gets none and is not checked.
    type: str
    choices: [ready, drain, maint]
  weight:
    description: Its share of the requests in proportion to the others' weights, 0 to 256.
    type: int
  weights:
    description: Many weights at once, backend to server to weight; instead of I(backend), I(server) and I(weight).
    type: dict
  keep_last:
    description: >-
      Leave servers alone that are the only one of their backend which is up and gets requests. For I(state) C(drain)
      and C(maint).
    type: bool
    default: false
  wait_until:
    description: >-
      What to wait for - C(idle) is no requests in hand, C(up) is that checks succeed. A server that is down is idle,
      and there is nothing to wait for.
    type: str
    choices: [idle, up]
  timeout_s:
    description: The longest that all of it may take.
    type: float
    default: 60
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author: modelhost
"""

EXAMPLES = r"""
- name: Take a host out of service
  haproxy_server:
    server: h1
    state: drain
    wait_until: idle
    timeout_s: 30

- name: Bring it back
  haproxy_server:
    server: h1
    state: ready
    wait_until: up

- name: Share requests in another proportion
  haproxy_server:
    weights: {model_churn: {h1: 4, h2: 2}}
"""

RETURN = r"""
servers:
  description: The servers that were meant, as they are now (in check mode, as they were).
  type: list
  elements: dict
  returned: always
  sample: [{backend: model_churn, server: h1, state: ready, up: true, weight: 4, sessions: 0}]
missing:
  description: Why I(missing_ok) has done nothing; empty otherwise.
  type: str
  returned: always
kept:
  description: Servers that I(keep_last) has left alone.
  type: list
  elements: str
  returned: always
waited_s:
  description: How long it waited.
  type: float
  returned: always
"""

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

WEIGHT_MAX = 256
ANSWER_MAX_BYTES = 64 << 20
POLL_S = 0.05
CALL_TIMEOUT_S = 10.0

MAINTENANCE_BITS = 0x01 | 0x02 | 0x04 | 0x20 | 0x40
DRAIN_BITS = 0x08 | 0x10
STOPPED = 0
RUNNING = 2


class HaproxyError(Exception):
    """HAProxy does not answer, or not what it should; its text is meant to be read by a person."""


class NoSuchServer(HaproxyError):
    """What a task names is not there, or HAProxy itself."""


class Server(NamedTuple):
    """One server of one backend."""

    backend: str
    server: str
    state: str
    """`ready`, `drain` or `maint`: what somebody wants of it."""
    up: bool
    """Whether its checks succeed."""
    down: bool
    """Whether they fail. A server in maintenance is neither."""
    weight: int
    sessions: int
    """Requests that it has, or that wait for it."""

    @property
    def name(self) -> str:
        """As the runtime socket writes it."""
        return f"{self.backend}/{self.server}"


# -- pure: texts in, servers and commands out ------------------------------------------------------------------
def rows(text: str, what: str, first: str) -> list[dict[str, str]]:
    """Read a table whose header begins with `# FIRST`, separated by commas or spaces. Raises `HaproxyError`."""
    lines = text.splitlines()
    while lines and not lines[0].startswith("# "):  # `show servers state` has a version before it
        lines.pop(0)
    if not lines:
        raise HaproxyError(f"{what}: expected a table, received {text[:200].strip()!r}")
    separator = "," if "," in lines[0] else None
    columns = lines[0][2:].split(separator)
    if columns[0] != first:
        raise HaproxyError(f"{what}: expected {first!r} as the first column, received {columns[0]!r}")
    # A line ends with a separator that no column stands behind, and may have fewer columns than the header.
    return [dict(zip(columns, line.split(separator), strict=False)) for line in lines[1:] if line.strip()]


def number(row: Mapping[str, str], column: str, what: str) -> int:
    """A whole number of a row. Raises `HaproxyError`."""
    text = row.get(column)
    try:
        return int(text or "0", 0)
    except ValueError:
        raise HaproxyError(f"{what}: {column}: expected a whole number, received {text!r}") from None


def servers_of(states: str, stats: str) -> list[Server]:
    """What `show servers state` and `show stat` say, in HAProxy's order. Raises `HaproxyError`."""
    sessions = {}
    for row in rows(stats, "show stat", "pxname"):
        what = f"show stat: {row.get('pxname')}/{row.get('svname')}"
        sessions[row.get("pxname"), row.get("svname")] = number(row, "scur", what) + number(row, "qcur", what)
    found = []
    for row in rows(states, "show servers state", "be_id"):
        backend, server = row.get("be_name", ""), row.get("srv_name", "")
        what = f"show servers state: {backend}/{server}"
        admin, operation = number(row, "srv_admin_state", what), number(row, "srv_op_state", what)
        maintained = bool(admin & MAINTENANCE_BITS)
        state = "maint" if maintained else "drain" if admin & DRAIN_BITS else "ready"
        found.append(
            Server(
                backend=backend,
                server=server,
                state=state,
                up=operation == RUNNING and not maintained,
                down=operation == STOPPED and not maintained,
                weight=number(row, "srv_uweight", what),
                sessions=sessions.get((backend, server), 0),
            )
        )
    return found


def meant(servers: Iterable[Server], backends: Sequence[str], server: str | None) -> list[Server]:
    """The servers that a task names; no backends are all. Raises `NoSuchServer` if there are none."""
    everyone = list(servers)
    found = [one for one in everyone if (not backends or one.backend in backends) and server in (None, one.server)]
    if not found:
        wanted = f"{' or '.join(backends) or 'any backend'}/{server or 'any server'}"
        known = ", ".join(one.name for one in everyone[:50]) or "none"
        raise NoSuchServer(f"{wanted}: no such server; there are: {known}")
    return found


def last_ones(servers: Iterable[Server], everyone: Iterable[Server]) -> list[Server]:
    """Those of which no other one of their backend gets requests."""
    serving = [one for one in everyone if one.up and one.state == "ready" and one.weight > 0]
    return [one for one in servers if not any(other.backend == one.backend and other != one for other in serving)]


def commands(servers: Iterable[Server], state: str | None, weights: Mapping[str, int]) -> list[str]:
    """What has to be said for servers to have this state, and these weights by their names."""
    said = []
    for one in servers:
        if state is not None and one.state != state:
            said.append(f"set server {one.name} state {state}")
        if one.name in weights and one.weight != weights[one.name]:
            said.append(f"set server {one.name} weight {weights[one.name]}")
    return said


def waits_for(servers: Iterable[Server], wait_until: str | None) -> list[str]:
    """What is still not as it is waited for, in words."""
    if wait_until == "idle":
        return [f"{one.name} has {one.sessions} requests" for one in servers if one.sessions and not one.down]
    if wait_until == "up":
        return [f"{one.name} is {'down' if one.down else one.state}" for one in servers if not one.up]
    return []


def flat_weights(weights: Mapping[Any, Any]) -> dict[str, int]:
    """Backend to server to weight, as `BACKEND/SERVER` to weight. Raises `HaproxyError`."""
    flat = {}
    for backend, of_servers in weights.items():
        if not isinstance(of_servers, Mapping):
            raise HaproxyError(f"weights: {backend}: expected server to weight, received {of_servers!r}")
        for server, weight in of_servers.items():
            flat[f"{backend}/{server}"] = checked_weight(weight, f"weights: {backend}: {server}")
    return flat


def checked_weight(weight: Any, what: str) -> int:
    """A weight. Raises `HaproxyError`."""
    text = str(weight)
    if isinstance(weight, bool) or not (text.isascii() and text.isdigit()) or int(text) > WEIGHT_MAX:
        raise HaproxyError(f"{what}: expected a whole number from 0 to {WEIGHT_MAX}, received {weight!r}")
    return int(text)


def shown(servers: Iterable[Server]) -> str:
    """Servers as a diff shows them."""
    return "".join(f"{one.name} state {one.state} weight {one.weight}\n" for one in servers)


def expected(servers: Iterable[Server], state: str | None, weights: Mapping[str, int]) -> str:
    """The same after the change."""
    return "".join(
        f"{one.name} state {state or one.state} weight {weights.get(one.name, one.weight)}\n" for one in servers
    )


# -- the thin shell ------------------------------------------------------------------------------------------------
class Runtime:
    """The runtime socket: a connection for each command, all of them together until a deadline."""

    def __init__(self, path: str, deadline_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._deadline_s = deadline_s
        self._clock = clock

    def left_s(self) -> float:
        """The time that is left."""
        return self._deadline_s - self._clock()

    def call(self, command: str) -> str:
        """Say something; back with the answer. Raises `HaproxyError`."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(max(0.1, min(CALL_TIMEOUT_S, self.left_s())))
                connection.connect(self._path)
                connection.sendall(command.encode() + b"\n")
                answer = bytearray()
                while part := connection.recv(65536):
                    answer += part
                    if len(answer) > ANSWER_MAX_BYTES:
                        raise HaproxyError(f"{command}: an answer of more than {ANSWER_MAX_BYTES} bytes")
        except TimeoutError:
            raise HaproxyError(f"{self._path}: HAProxy does not answer {command!r} in time") from None
        except FileNotFoundError:
            raise NoSuchServer(f"{self._path}: no such socket: HAProxy does not run, or has another one") from None
        except ConnectionRefusedError:
            raise NoSuchServer(f"{self._path}: nobody listens: HAProxy does not run") from None
        except OSError as error:
            raise HaproxyError(f"{self._path}: {command!r}: {error}") from error
        return answer.decode(errors="replace")

    def servers(self) -> list[Server]:
        """All servers. Raises `HaproxyError`."""
        return servers_of(self.call("show servers state"), self.call("show stat"))

    def change(self, command: str) -> None:
        """Say something that has an answer only if it fails. Raises `HaproxyError`."""
        answer = self.call(command).strip()
        if answer:
            raise HaproxyError(f"{command}: {answer}")


def run(
    parameters: Mapping[str, Any], check_mode: bool, clock: Callable[[], float], sleep: Callable[[float], None]
) -> dict[str, Any]:
    """Do what a task asks for; back with its result. Raises `HaproxyError`."""
    began_s = clock()
    server, state, wait_until = (parameters[key] for key in ("server", "state", "wait_until"))
    backends = parameters["backends"] or ([parameters["backend"]] if parameters["backend"] is not None else [])
    runtime = Runtime(parameters["socket"], began_s + parameters["timeout_s"], clock)
    everyone = runtime.servers()
    if parameters["weights"] is not None:
        weights = flat_weights(parameters["weights"])
        names = {one.name for one in everyone}
        if unknown := sorted(weights.keys() - names):
            raise NoSuchServer(
                f"weights: no such server: {', '.join(unknown[:20])}; there are: {', '.join(sorted(names)[:50])}"
            )
        before = [one for one in everyone if one.name in weights]
    else:
        before = meant(everyone, backends, server)
        weights = {}
        if parameters["weight"] is not None:
            weight = checked_weight(parameters["weight"], "weight")
            weights = {one.name: weight for one in before}
    kept: list[Server] = []
    if parameters["keep_last"] and state in ("drain", "maint"):
        kept = last_ones(before, everyone)
        before = [one for one in before if one not in kept]
    said = commands(before, state, weights)
    result: dict[str, Any] = {
        "changed": bool(said),
        "kept": [one.name for one in kept],
        "missing": "",
        "diff": {"before": shown(before), "after": expected(before, state, weights)},
    }
    if not check_mode:
        for command in said:
            runtime.change(command)
    names = {one.name for one in before}
    after = before
    waiting_s = clock()
    while not check_mode:
        after = [one for one in runtime.servers() if one.name in names]
        if left := commands(after, state, weights):
            raise HaproxyError(f"HAProxy has not done what it was told: {'; '.join(left[:20])}")
        if gone := names - {one.name for one in after}:
            raise HaproxyError(f"no longer there: {', '.join(sorted(gone))}")
        if not (waits := waits_for(after, wait_until)):
            break
        if runtime.left_s() <= 0:
            raise HaproxyError(f"not within {parameters['timeout_s']:g} s: {wait_until}: {'; '.join(waits[:20])}")
        sleep(POLL_S)
    return {**result, "servers": [one._asdict() for one in after], "waited_s": round(clock() - waiting_s, 3)}


def main() -> None:
    """Run as Ansible's module."""
    module = AnsibleModule(
        argument_spec={
            "socket": {"type": "path", "default": "/run/haproxy/admin.sock"},
            "backend": {"type": "str"},
            "backends": {"type": "list", "elements": "str"},
            "missing_ok": {"type": "bool", "default": False},
            "server": {"type": "str"},
            "state": {"type": "str", "choices": ["ready", "drain", "maint"]},
            "weight": {"type": "int"},
            "weights": {"type": "dict"},
            "keep_last": {"type": "bool", "default": False},
            "wait_until": {"type": "str", "choices": ["idle", "up"]},
            "timeout_s": {"type": "float", "default": 60.0},
        },
        mutually_exclusive=[
            ("backend", "backends"),
            ("weights", "backends"),
            ("weights", "backend"),
            ("weights", "server"),
            ("weights", "weight"),
            ("weights", "state"),
        ],
        required_by={"weight": ("server",)},
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module.params, module.check_mode, time.monotonic, time.sleep))
    except NoSuchServer as error:
        if not module.params["missing_ok"]:
            module.fail_json(msg=str(error))
        module.exit_json(changed=False, kept=[], missing=str(error), servers=[], waited_s=0.0)
    except HaproxyError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
