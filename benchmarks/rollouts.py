"""What clients see while versions change, processes come and fronts are restarted. A scenario of `scenarios.py`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load import Measured, measure
from benchmarks.servers import REPOSITORY, ROOT, WORKER_CPU, Running, modelhost, running
from host.manifest import MANIFEST_FILE, encode_manifest, list_files, make_manifest
from host.protocol.package import read_package

MODEL = "breast_cancer"
PATH = f"/v2/models/{MODEL}/infer"
CONNECTIONS = 32
KILL_AFTER_S = 0.6
"""After the start of a command: it has written the change, and the new version loads."""
FRONTS = 2


@dataclass(frozen=True, slots=True)
class Step:
    """A command that is run under load."""

    name: str
    words: tuple[str, ...]
    reason: str = ""
    """What it says when it fails, as it should."""
    kills_control: bool = False
    """While it is under way, control is killed."""


FAULTY_TOML = """runtime = "python"
[[inputs]]
name = "features"
datatype = "FP64"
shape = [-1, 30]
[[outputs]]
name = "probability"
datatype = "FP64"
shape = [-1, 1]
[resources]
memory = "128MiB"
[limits]
startup_s = 3
"""
FAULTS: dict[str, tuple[str, str]] = {
    "crashes": ("import ctypes; ctypes.string_at(13)", "killed by SIGSEGV"),
    "hangs": ("import time; time.sleep(600)", "not ready within startup_s = 3 s"),
    "exceeds its memory": ("held = [bytes(1 << 20) + b'1' for _ in range(1000)]", "out of memory"),
    "fails a golden case": ("pass", "a golden case failed"),
    "has wrong checksums": ("pass", "sha256: expected"),
}
"""What a version does when it loads, and the reason that `apply --wait` ends with."""

STEPS: tuple[Step, ...] = (
    Step("version 1 -> 2", ("rollback", MODEL, "--to", "2", "--wait")),
    Step("version 2 -> 3", ("rollback", MODEL, "--to", "3", "--wait")),
    Step("rollback to 2", ("rollback", MODEL, "--wait")),
    *(
        Step(f"version 2 -> one that {fault}", ("rollback", MODEL, "--to", str(10 + number), "--wait"), reason)
        for number, (fault, (_, reason)) in enumerate(FAULTS.items())
    ),
    Step("back to 2", ("rollback", MODEL, "--to", "2", "--wait")),
    Step("version 2 -> 3, control killed", ("rollback", MODEL, "--to", "3", "--wait"), kills_control=True),
    Step("its only process restarted", ("restart", MODEL)),
    Step("1 -> 4 processes", ("scale", f"{MODEL}=4", "--wait")),
    Step("4 -> 2 processes", ("scale", f"{MODEL}=2", "--wait")),
    Step("both fronts restarted, one by one", ("restart", "front")),
)


def rollouts(seconds: float, bodies: list[bytes], say: Callable[[str], None]) -> dict[str, Any]:
    """Each step under wrk, beside the same seconds without one."""
    found = []
    with tempfile.TemporaryDirectory(prefix="mh-") as directory, ThreadPoolExecutor(1) as pool:
        repository = Path(directory)
        for version in ("1", "2", "3"):
            shutil.copytree(REPOSITORY / MODEL / "1", repository / MODEL / version)
        file = repository / ".bodies"
        file.write_bytes(b"\n".join(bodies))
        server = replace(modelhost(MODEL, PATH, repository=repository, fronts=FRONTS), pins=())
        with running(server, bodies[0]) as started:
            _command(started, "rollback", MODEL, "--to", "1", "--wait")
            for number, (code, reason) in enumerate(FAULTS.values()):
                _write_faulty(repository / MODEL / str(10 + number), code, altered=reason.startswith("sha256"))
            _load(started, file, 3)
            for step in STEPS:
                still = _load(started, file, seconds)
                loading: Future[Measured] = pool.submit(_load, started, file, seconds)
                took_s = _run(started, step)
                beside = loading.result()
                found.append(
                    {
                        "step": step.name,
                        "took_s": round(took_s, 2),
                        "requests": round(beside.requests_per_s * seconds),
                        "failed": beside.errors,
                        "still_p99_ms": round(still.p99_ms, 2),
                        "p99_ms": round(beside.p99_ms, 2),
                    }
                )
                say(f"rollouts: {found[-1]}")
    return {"connections": CONNECTIONS, "fronts": FRONTS, "steps": found, "failed": sum(one["failed"] for one in found)}


def _load(started: Running, bodies: Path, seconds: float) -> Measured:
    return measure(started, bodies, CONNECTIONS, seconds=seconds, content_type="application/json", load_cpu=WORKER_CPU)


def _write_faulty(package: Path, code: str, *, altered: bool) -> None:
    """A version that cannot be served."""
    package.mkdir()
    (package / "model.toml").write_text(FAULTY_TOML)
    (package / "model.py").write_text(
        f"class Model:\n    def load(self, package):\n        {code}\n\n"
        "    def predict(self, inputs):\n        return {'probability': inputs['features'][:, :1]}\n"
    )
    shutil.copy(REPOSITORY / MODEL / "1" / "golden.json", package)
    if altered:
        manifest = make_manifest(package, read_package(package), list_files(package, ()))
        (package / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
        (package / "model.py").write_text((package / "model.py").read_text().replace("        pass", "        None"))


def _run(started: Running, step: Step) -> float:
    """Run a step's command; how long it took. Ends everything if it does not do what it should."""
    with ThreadPoolExecutor(1) as pool:
        running_step = pool.submit(_command, started, *step.words, reason=step.reason)
        if step.kills_control:
            time.sleep(KILL_AFTER_S)
            (pid,) = (pid for pid, command in started.pids().items() if "-m host.control" in command)
            os.kill(pid, signal.SIGKILL)
        return running_step.result()


def _command(started: Running, *words: str, reason: str = "") -> float:
    """Run one of modelhost's commands for the host; how long it took."""
    run_dir = next(
        match[1] for command in started.pids().values() if (match := re.search(r"--run-dir=(\S+)", command)) is not None
    )
    program = ROOT / ".venv" / "bin" / "modelhost"
    begun = time.perf_counter()
    done = subprocess.run(
        [str(program), *words, f"--run-dir={run_dir}"], check=False, capture_output=True, text=True, timeout=120
    )
    if bool(done.returncode) != bool(reason) or reason not in done.stderr:
        raise SystemExit(f"modelhost {' '.join(words)}: expected {reason or 'success'}, received {done.stderr}")
    return time.perf_counter() - begun
