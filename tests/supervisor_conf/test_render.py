"""What is rendered, read back by supervisord's own parser."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supervisor.options import ClientOptions, ServerOptions

from host.config.deployment import DeployedModel, Deployment
from host.config.settings import HostSettings, resolve_settings
from host.protocol.messages import Limits
from host.protocol.types import Signature, TensorSpec
from supervisor_conf.render import HEAP_KEPT_BYTES, Programs, argument, literal, open_files, render, stop_wait_s

SPEC = TensorSpec("x", "FP64", (-1, 1))
PROGRAMS = Programs(
    host_python=Path("/venv/bin/python"), model_python=Path("/model env/bin/python"), code_root=Path("/code")
)
ODD = st.text(st.characters(min_codepoint=32, exclude_characters="/\x7f", exclude_categories=["Cs"]), min_size=1)
ODD_NAMES = ODD.filter(lambda text: len(text.encode()) <= 60 and text not in (".", "..")) | st.sampled_from(
    [
        "a ;b",
        "a #b",
        "%(here)s",
        "100%",
        "%%",
        "%(ENV_HOME)s",
        "it's",
        'a"b',
        " lead",
        "trail ",
        ";x",
        "#x",
        "a\\b",
        "~",
        "$HOME",
    ]
)


def model(
    name: str = "churn", version: str = "3", processes: int = 2, package: str = "/models/churn/3"
) -> DeployedModel:
    return DeployedModel(
        name=name,
        version=version,
        processes=processes,
        package=package,
        platform="python",
        signature=Signature((SPEC,), (SPEC,)),
        limits=Limits(),
    )


def host_settings(run_dir: Path, **flags: str) -> HostSettings:
    resolved, _ = resolve_settings({}, None, {}, flags, Path("/"))
    return replace(resolved, run_dir=run_dir)


def write(run_dir: Path, text: str) -> Path:
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    path = run_dir / "supervisord.conf"
    path.write_text(text, "utf-8")
    return path


def parsed(path: Path) -> Any:
    options = ServerOptions()
    options.realize(["-c", str(path)])
    return options


def processes_of(options: Any) -> dict[str, Any]:
    return {
        f"{group.name}:{process.name}": process
        for group in options.process_group_configs
        for process in group.process_configs
    }


@pytest.fixture
def rendered(tmp_path: Path) -> tuple[Path, Any]:
    files = render(host_settings(tmp_path, fronts="2", drain_s="2.5"), Deployment((model(),)), PROGRAMS)
    assert list(files) == ["supervisord.conf"]
    return tmp_path, parsed(write(tmp_path, files["supervisord.conf"]))


def test_one_process_for_each_slot_front_and_control(rendered: tuple[Path, Any]) -> None:
    assert set(processes_of(rendered[1])) == {"control:control", "churn.v3:0", "churn.v3:1", "front:0", "front:1"}


def test_the_commands(rendered: tuple[Path, Any]) -> None:
    run_dir, options = rendered
    processes = processes_of(options)

    def launcher(program: str) -> list[str]:
        plan = f"{run_dir}/slots/{program}.json"
        return ["/venv/bin/python", "-I", "-S", "/code/host/isolation/launch.py", plan, "--"]

    assert shlex.split(processes["churn.v3:1"].command) == [
        *launcher("churn.v3:1"),
        *("/model env/bin/python", "-I", "-u", "-X", "faulthandler", "/code/models/by_path.py"),
        *("--package", "/models/churn/3", "--socket", f"{run_dir}/sockets/churn.v3/1.sock", "--slot", "1"),
        *("--body-max-bytes", "67108864", "--drain-s", "2.5"),
        *("--log-level", "info", "--log-format", "text"),
    ]
    assert shlex.split(processes["front:1"].command) == [
        *launcher("front:1"),
        *("/venv/bin/python", "-u", "-m", "host.front", "--run-dir", str(run_dir), "--address", "127.0.0.1"),
        *("--port", "8080", "--max-body-bytes", "67108864", "--max-connections", "4096", "--keepalive-s", "75"),
        *("--access-log", "0.01", "--trace-sample", "0.01"),
        *("--drain-s", "2.5", "--log-level", "info", "--log-format", "text", "--index", "1"),
    ]
    assert shlex.split(processes["control:control"].command) == [
        *launcher("control"),
        *("/venv/bin/python", "-u", "-m", "host.control", "--run-dir", str(run_dir)),
        *("--log-level", "info", "--log-format", "text", "--events"),
    ]


def test_the_life_of_the_processes(rendered: tuple[Path, Any]) -> None:
    run_dir, options = rendered
    processes = processes_of(options)
    worker, front, control = (processes[name] for name in ("churn.v3:0", "front:0", "control:control"))
    for process in processes.values():
        assert process.stopsignal == 15
        assert (process.stopasgroup, process.killasgroup) == (False, True)
    # Workers are started by control.
    assert [process.autostart for process in (worker, front, control)] == [False, True, True]
    assert worker.stopwaitsecs == front.stopwaitsecs == 8 == stop_wait_s(2.5)
    assert worker.priority < control.priority < front.priority
    assert worker.stdout_logfile == f"{run_dir}/logs/churn.v3:0.log"
    assert worker.redirect_stderr
    assert front.stdout_logfile == f"{run_dir}/logs/front:0.log"
    assert control.stderr_logfile == f"{run_dir}/logs/control.log"
    assert (worker.directory, front.directory) == ("/", "/code")
    kept = {name: str(HEAP_KEPT_BYTES) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}
    assert kept.items() <= worker.environment.items()
    assert kept.items() <= front.environment.items()


def test_supervisord_itself(rendered: tuple[Path, Any]) -> None:
    run_dir, options = rendered
    section = options.configroot.supervisord
    [server] = section.server_configs
    assert (server["file"], server["chmod"]) == (f"{run_dir}/supervisor.sock", 0o700)
    assert (section.nodaemon, section.silent, section.umask) == (True, True, 0o077)
    assert section.logfile == f"{run_dir}/logs/supervisord.log"
    assert section.pidfile == f"{run_dir}/supervisord.pid"
    interfaces = {name: factory.__module__ for name, factory, _ in section.rpcinterface_factories}
    assert interfaces == {
        "supervisor": "supervisor.rpcinterface",
        "modelhost": "supervisor_conf.deaths",
        "slots": "supervisor_conf.slots",
        "fork": "supervisor_conf.fork",
    }
    client = ClientOptions()
    client.realize(["-c", str(run_dir / "supervisord.conf")])
    assert client.serverurl == f"unix://{run_dir}/supervisor.sock"


@pytest.mark.parametrize(
    ("connections", "expected"), [(1, 1024), (1024 - 256 - 2, 1024), (1024 - 256 - 1, 1025), (100_000, 100_258)]
)
def test_open_files_are_enough_for_the_connections(connections: int, expected: int) -> None:
    options = host_settings(Path("/r"), max_connections=str(connections))
    assert open_files(options, Deployment((model(),))) == expected


@pytest.mark.parametrize(("drain_s", "expected"), [(0, 5), (0.1, 6), (1, 6), (3600, 3605)])
def test_stop_wait_is_whole_seconds_beyond_the_drain(drain_s: float, expected: int) -> None:
    assert stop_wait_s(drain_s) == expected


@given(run_name=ODD_NAMES, code_name=ODD_NAMES, python_name=ODD_NAMES, package_name=ODD_NAMES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_odd_paths_survive(run_name: str, code_name: str, python_name: str, package_name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / run_name
        programs = Programs(
            host_python=Path("/bin") / python_name,
            model_python=Path("/bin") / python_name,
            code_root=Path("/code") / code_name,
        )
        deployment = Deployment((model(package=f"/models/{package_name}"),))
        text = render(host_settings(run_dir), deployment, programs)["supervisord.conf"]
        processes = processes_of(parsed(write(run_dir, text)))
    launcher = [f"/bin/{python_name}", "-I", "-S", f"/code/{code_name}/host/isolation/launch.py"]
    worker = shlex.split(processes["churn.v3:1"].command)
    assert worker[:6] == [*launcher, f"{run_dir}/slots/churn.v3:1.json", "--"]
    worker = worker[6:]
    assert worker[0] == f"/bin/{python_name}"
    assert worker[5] == f"/code/{code_name}/models/by_path.py"
    assert worker[7] == f"/models/{package_name}"
    assert worker[9] == f"{run_dir}/sockets/churn.v3/1.sock"
    assert worker[10:12] == ["--slot", "1"]
    assert processes["churn.v3:1"].stdout_logfile == f"{run_dir}/logs/churn.v3:1.log"
    front = shlex.split(processes["front:0"].command)
    assert front[:6] == [*launcher, f"{run_dir}/slots/front:0.json", "--"]
    front = front[6:]
    assert front[:6] == [f"/bin/{python_name}", "-u", "-m", "host.front", "--run-dir", str(run_dir)]
    assert processes["front:0"].directory == f"/code/{code_name}"


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    version=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    processes=st.integers(1, 256),
)
@settings(max_examples=40, deadline=None)
def test_every_model_name_survives(name: str, version: str, processes: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        text = render(host_settings(Path(directory)), Deployment((model(name, version, processes),)), PROGRAMS)
        groups = parsed(write(Path(directory), text["supervisord.conf"])).process_group_configs
    [group] = [group for group in groups if group.name not in ("front", "control")]
    assert group.name == f"{name}.v{version}"
    assert sorted(int(process.name) for process in group.process_configs) == list(range(processes))


def test_words_and_values() -> None:
    assert argument("a b") == "'a b'"
    assert literal("100%") == "100%%"
    assert literal("a ;b") == "a %(here).0s;b"
