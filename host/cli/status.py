"""`modelhost status`: desired against actual, as control sees it."""

from __future__ import annotations

import http.client
import socket
import time
from typing import TYPE_CHECKING, Final

import click

from host.cli.options import load, settings_options
from host.protocol.errors import HostError

if TYPE_CHECKING:
    from rich.text import Text

    from host.config.run_dir import RunDirectory
    from host.control.status import HostStatus, ModelStatus, SlotStatus, Traffic
    from host.isolation.inspection import Enforced

CALL_TIMEOUT_S: Final = 5.0
CONTROL_BACK_S: Final = 3.0
"""supervisord restarts a dead control within about a second."""

WATCH_S: Final = 1.0
_LOOK_S: Final = 0.1
_OWN: Final = {True: "own", False: "the host's", None: "not ours to see"}


class NotRunning(HostError):
    """No host runs in the directory."""


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="write the document that control gives")
@click.option("--watch", is_flag=True, help="show it again every second, until Ctrl-C")
@click.option("--isolation", is_flag=True, help="show what each process is kept from, as the kernel says")
@settings_options("run_dir")
def command(as_json: bool, watch: bool, isolation: bool, config_file: str | None, **flags: str | None) -> int:
    """Show every model version, wanted against ready, and every process. Ends with 1 unless all are ready.

    CPU and requests count since the processes started; with --watch, since the last look. With --isolation: what is in
    force for every process, read back from /proc and the cgroups, and what this host does not allow; then it ends with
    1 if something is missing.
    """
    import msgspec

    from host.cli.printing import print_json
    from host.config.run_dir import RunDirectory
    from host.control.status import HostStatus

    run_dir = RunDirectory(load(config_file, flags).settings.run_dir)
    try:
        document = fetch_status(run_dir)
    except HostError as error:
        if not as_json:
            raise
        print_json({"running": not isinstance(error, NotRunning), "ready": False, "reason": str(error)})
        return 1
    status = msgspec.json.decode(document, type=HostStatus)
    if watch and not as_json and not isolation:
        _watch(run_dir, status)
    if isolation:
        return _show_isolation(run_dir, status, as_json=as_json)
    if as_json:
        print_json({"running": True} | msgspec.json.decode(document))
    else:
        _print(status)
    return 0 if status.ready else 1


def _watch(run_dir: RunDirectory, status: HostStatus) -> None:
    """Until Ctrl-C, which ends this command as any other."""
    import msgspec

    from host.control.status import HostStatus

    before: _Before | None = None
    while True:
        click.clear()
        click.echo(time.strftime("%Y-%m-%d %H:%M:%S\n"))
        _print(status, before)
        before = _Before(status)
        time.sleep(WATCH_S)
        status = msgspec.json.decode(fetch_status(run_dir), type=HostStatus)


class _Before:
    """What an earlier look saw."""

    def __init__(self, status: HostStatus) -> None:
        self.at_s = time.monotonic()
        self.slots = {slot.name: slot for slot in _slots(status)}
        self.traffic = {(model.name, model.version): model.traffic for model in status.models}


def _slots(status: HostStatus) -> list[SlotStatus]:
    return [*(slot for model in status.models for slot in model.slots), *status.host, *status.unwanted]


def _show_isolation(run_dir: RunDirectory, status: HostStatus, *, as_json: bool) -> int:
    from host.cli.printing import make_table, print_json, print_table
    from host.isolation.inspection import inspect
    from host.isolation.prepare import read_record

    record = read_record(run_dir)
    tree = record.tree if record is not None else None
    missing = record.missing if record is not None else []
    slots = [*(slot for model in status.models for slot in model.slots), *status.host]
    seen = [inspect(slot.name, slot.pid, tree) for slot in slots if slot.pid]
    found = [one for one in seen if one is not None]
    if as_json:
        mode = record.isolation if record is not None else None
        print_json({"isolation": mode, "missing": missing, "processes": found})
        return 1 if missing else 0
    table = make_table(
        *("process", "user", "memory", "peak", "pids", "CPUs", "weight", "threads", "network", "files"),
        *("capabilities", "oom_adj", "cgroup"),
        title="in force, as the kernel says",
    )
    for one in found:
        table.add_row(*_isolation_cells(one))
    print_table(table)
    for text in missing:
        click.echo(f"\nnot allowed on this host: {text}")
    return 1 if missing else 0


def _isolation_cells(one: Enforced) -> list[str]:
    cgroup = one.cgroup if one.cgroup is not None and one.cgroup.joined else None
    mib = 1 << 20
    return [
        one.program,
        str(one.user),
        f"{cgroup.memory_limit_bytes // mib} MiB" if cgroup and cgroup.memory_limit_bytes else "no limit",
        f"{cgroup.memory_peak_bytes // mib} MiB" if cgroup and cgroup.memory_peak_bytes else "",
        str(cgroup.pids_limit) if cgroup and cgroup.pids_limit else "no limit",
        one.cpus,
        str(cgroup.cpu_weight) if cgroup else "",
        str(one.threads),
        _OWN[one.own_network],
        _OWN[one.own_view],
        one.capabilities + (", no new ones" if one.no_new_privileges else ""),
        str(one.oom_score_adj),
        f"v{cgroup.version} {cgroup.path}" if cgroup else "none",
    ]


def fetch_status(run_dir: RunDirectory) -> bytes:
    """Ask control; wait a moment for one that is being restarted. Raises `HostError`."""
    from host.cli.preflight import holder_pid

    deadline = time.monotonic() + CONTROL_BACK_S
    while True:
        try:
            return _get(run_dir)
        except OSError as error:
            if holder_pid(run_dir) is None and not run_dir.supervisor_socket.exists():
                raise NotRunning(f"no host runs in {run_dir.root}; start it with: modelhost up") from error
            if time.monotonic() > deadline:
                raise HostError(
                    f"control does not answer on {run_dir.control_socket}: {error}; its log: {run_dir.log('control')}"
                ) from error
        time.sleep(_LOOK_S)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CALL_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CALL_TIMEOUT_S)
        self.sock.connect(self._path)


def _get(run_dir: RunDirectory) -> bytes:
    connection = _UnixConnection(str(run_dir.control_socket))
    try:
        connection.request("GET", "/status")
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no answer: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise HostError(f"control answered {response.status}: {body.decode('utf-8', 'replace')[:300]}")
    return body


def _print(status: HostStatus, before: _Before | None = None) -> None:
    """Show it. `before`: an earlier look, since which CPU and requests are shown."""
    from host.cli.printing import make_table, print_table

    since_s = time.monotonic() - before.at_s if before is not None else 0.0
    models = make_table(
        *("model", "version", "wanted", "ready", "", "requests", "failed", "waiting", "p50", "p99"), title="models"
    )
    for model in status.models:
        state = _state(model)
        name = model.name if model.default else f"{model.name} (not default)"
        earlier = before.traffic.get((model.name, model.version)) if before is not None else None
        traffic = _traffic_cells(model.traffic, earlier, since_s)
        models.add_row(name, model.version, str(model.wanted), str(model.ready), state, *traffic)
    print_table(models)
    for model in status.models:
        if model.reason:
            click.echo(f"{model.name} version {model.version}: {model.reason}")
    click.echo()
    processes = make_table(
        *("process", "ready", "state", "pid", "uptime", "memory", "CPU", "restarts", "last exit"), title="processes"
    )
    for slot in _slots(status):
        processes.add_row(*_cells(slot, before.slots.get(slot.name) if before is not None else None))
    print_table(processes)


def _traffic_cells(now: Traffic | None, before: Traffic | None, since_s: float) -> tuple[str, ...]:
    """Requests, how many failed and how many wait, and two quantiles: since an earlier look, else in all."""
    from host.protocol.latency import quantile_ns, since

    if now is None:
        return ("",) * 5
    latency = now.latency
    requests, failed = f"{now.answered + now.failed:,}", f"{now.failed:,}"
    if before is not None:
        latency = since(before.latency, latency)
        more = now.answered + now.failed - before.answered - before.failed
        requests, failed = f"{max(0, more) / since_s:,.0f}/s", f"{max(0, now.failed - before.failed) / since_s:,.0f}/s"
    times = (quantile_ns(latency, quantile) for quantile in (0.5, 0.99))
    return requests, failed, str(now.waiting), *(f"{time_ns / 1e6:.2f} ms" if time_ns else "" for time_ns in times)


def _state(model: ModelStatus) -> Text:
    from rich.text import Text

    from host.control.status import VersionState

    match model.state:
        case VersionState.STARTING:
            return Text("starting", style="yellow")
        case VersionState.FAILED:
            return Text("given up", style="red")
        case VersionState.REPLACED:
            return Text("serving until another version is ready", style="yellow")
        case VersionState.LEAVING:
            return Text("leaving", style="yellow")
        case VersionState.SERVING:
            is_ready = model.ready >= model.wanted and not model.reason
            return Text("ready", style="green") if is_ready else Text("not ready", style="red")


def _cells(slot: SlotStatus, before: SlotStatus | None) -> list[str | Text]:
    from rich.text import Text

    exit_text = ""
    if slot.last_exit is not None:
        exit_text = f"{_clock(slot.last_exit.at)} {slot.last_exit.reason}"
    if slot.backoff is not None and slot.backoff.until > time.time():
        pause_s = slot.backoff.until - time.time()
        exit_text += (
            f"; starts again in {pause_s:.0f} s, after {slot.backoff.short_lives} short lives "
            f"since {_clock(slot.backoff.since)} (modelhost restart starts it now)"
        )
    return [
        slot.name,
        Text("yes", style="green") if slot.ready else Text("no", style="red"),
        slot.state,
        str(slot.pid or ""),
        duration(slot.uptime_s) if slot.pid else "",
        *_usage_cells(slot, before),
        str(slot.restarts or ""),
        exit_text,
    ]


def _usage_cells(slot: SlotStatus, before: SlotStatus | None) -> tuple[str, str]:
    """Memory against its limit, and CPUs in use: since the earlier look, or since the process started."""
    usage = slot.usage
    if usage is None:
        return "", ""
    mib = 1 << 20
    limit = f" of {usage.memory_limit_bytes // mib:,}" if usage.memory_limit_bytes else ""
    cpu_s, wall_s = usage.cpu_s, slot.uptime_s
    if before is not None and before.usage is not None and before.pid == slot.pid:
        cpu_s, wall_s = cpu_s - before.usage.cpu_s, wall_s - before.uptime_s
    return f"{usage.memory_bytes // mib:,}{limit} MiB", f"{cpu_s / wall_s:.0%}" if wall_s > 0 else ""


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def duration(seconds: float) -> str:
    """`3d 04:05:06`, or `4:05` below an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
