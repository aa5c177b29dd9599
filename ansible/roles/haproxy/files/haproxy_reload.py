"""Reload HAProxy so that nothing is lost: `haproxy_reload.py PID CONFIG SOCKET STATE_DIR`, for `systemctl reload`.

The new worker begins with the states and weights that the servers have now, and with what is known about them: a host
that was drained stays so, and one that is down gets no request. Back when the new worker answers. What it has loaded
is kept in `loaded.cfg`. The old worker lives on with the clients' idle connections, and gives each one more answer: it
does not take that from a server that is not configured any more.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT_S = 15.0
CALL_S = 5.0
ANSWER_MAX_BYTES = 16 << 20
RUNNING = "2"
"""`srv_op_state` of a server that is up."""


def configured_ports(config: str) -> dict[tuple[str, str], str]:
    """Backend and server to the port that the configuration says."""
    ports, backend = {}, ""
    for words in (line.split() for line in config.splitlines()):
        if len(words) == 2 and words[0] in ("backend", "frontend"):
            backend = words[1]
        elif len(words) > 2 and words[0] == "server":
            ports[backend, words[1]] = words[2].rpartition(":")[2]
    return ports


def with_ports(states: str, ports: Mapping[tuple[str, str], str]) -> str:
    """Give the answer to `show servers state` for the servers that are still configured, with their ports of now.

    HAProxy believes the file more than its configuration: a host that got another port would be asked at its old one.
    Of addresses and weights the configuration's count if they were changed. Raises `ValueError` if it is no table.
    """
    lines = states.strip().splitlines()
    columns = lines[1].removeprefix("# ").split() if len(lines) > 1 else []
    if not {"be_name", "srv_name", "srv_port"}.issubset(columns):
        raise ValueError(f"expected a table, received {states[:200].strip()!r}")
    kept = []
    for line in lines[2:]:
        row = dict(zip(columns, line.split(), strict=False))
        if port := ports.get((row.get("be_name", ""), row.get("srv_name", ""))):
            kept.append(" ".join({**row, "srv_port": port}.values()))
    return "\n".join([*lines[:2], *kept, ""])


def leaving(states: str, ports: Mapping[tuple[str, str], str]) -> list[str]:
    """Servers, as `BACKEND/SERVER`, that are not configured any more, where another one that stays can take requests.

    `states` is a table that `with_ports` has taken.
    """
    lines = states.strip().splitlines()
    columns = lines[1].removeprefix("# ").split()
    rows = [dict(zip(columns, line.split(), strict=False)) for line in lines[2:]]
    usable = [
        (row.get("be_name", ""), row.get("srv_name", ""))
        for row in rows
        if row.get("srv_op_state") == RUNNING and row.get("srv_admin_state") == "0" and row.get("srv_uweight") != "0"
    ]
    staying = {backend for backend, server in usable if (backend, server) in ports}
    return [
        f"{backend}/{server}" for backend, server in usable if (backend, server) not in ports and backend in staying
    ]


def call(path: Path, command: str) -> str:
    """Say something to the worker that has the runtime socket. Raises `OSError`, `TimeoutError` after `CALL_S`."""
    deadline = time.monotonic() + CALL_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CALL_S)
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        answer = bytearray()
        while part := connection.recv(65536):
            answer += part
            if len(answer) > ANSWER_MAX_BYTES:
                raise OSError(f"expected an answer of at most {ANSWER_MAX_BYTES} bytes, received more")
            if (left_s := deadline - time.monotonic()) <= 0:
                raise TimeoutError(f"expected an answer within {CALL_S:g} s, received {len(answer)} bytes of one")
            connection.settimeout(left_s)
    return answer.decode(errors="replace")


def worker_of(path: Path) -> str:
    """The worker's pid, or an empty text while none answers."""
    try:
        lines = call(path, "show info").splitlines()
    except OSError:
        return ""
    return next((line.partition(": ")[2] for line in lines if line.startswith("Pid: ")), "")


def set_states(path: Path, servers: Sequence[str], state: str) -> None:
    """Set servers' states, as far as the worker answers: it is a reload all the same."""
    for server in servers:
        try:
            call(path, f"set server {server} state {state}")
        except OSError:
            return


def main(pid: int, config: Path, runtime: Path, state_dir: Path) -> str:
    """Reload; an empty text, or what went wrong."""
    states = state_dir / "server-state"
    state_dir.mkdir(mode=0o755, exist_ok=True)  # HAProxy may have been started before systemd knew of it
    before = worker_of(runtime)
    left: list[str] = []
    if before:
        ports = configured_ports(config.read_text())
        try:
            now = call(runtime, "show servers state")
            kept = with_ports(now, ports)
        except (OSError, ValueError) as error:
            return f"{runtime}: show servers state: {error}"
        left = leaving(now, ports)
        beside = states.with_suffix(".new")
        beside.write_text(kept)
        beside.replace(states)
    else:
        states.unlink(missing_ok=True)  # of another time
    beside = state_dir / "loaded.cfg.new"
    shutil.copyfile(config, beside)
    set_states(runtime, left, "drain")
    os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + LIMIT_S
    while (worker := worker_of(runtime)) in ("", before):
        if time.monotonic() > deadline:
            if worker:
                set_states(runtime, left, "ready")
            return f"{runtime}: no new worker within {LIMIT_S:g} s; HAProxy's log says why"
        time.sleep(0.02)
    beside.replace(state_dir / "loaded.cfg")
    return ""


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *(Path(argument) for argument in sys.argv[2:5])) or 0)
